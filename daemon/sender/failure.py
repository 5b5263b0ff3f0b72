"""Why an exchange brought no answer, as a value: the sender's own parts return it to each other, never raise it."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.model import ErrorKind


@dataclass(frozen=True, slots=True)
class Failure:
    """`sentence` is written for the customer: no resolved address, no path, no secret in it."""

    kind: ErrorKind
    sentence: str
