"""What the floors hand each other: frozen values without behaviour of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ErrorKind = Literal["dns", "connect", "tls", "timeout", "blocked", "protocol", "reset"]
"""Why an exchange brought no complete header block: the name did not resolve, no TCP connection, no TLS, the deadline,
an address that must not be connected to, an answer that is not HTTP, or a connection that ended too early."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one HTTP exchange came to. Every field is fit to be shown to the customer and to be stored.

    Exactly one of `status_code` and `error_kind` is None. `status_code` (200-599) is there as soon as a complete
    header block came, whatever befell the body. `error` is one sentence without addresses, secrets or paths, None
    with a status. `response_headers` are printable latin-1, at most 4 KiB together; `response_body` is at most the
    first 4 KiB of the body, as UTF-8 with replacement characters for what is not; `response_truncated` says that
    the body was longer, or did not come whole. `retry_after` is the header as it came, unparsed.
    """

    status_code: int | None
    error_kind: ErrorKind | None
    error: str | None
    duration_ms: int
    response_headers: tuple[tuple[str, str], ...] = ()
    response_body: str = ""
    response_truncated: bool = False
    retry_after: str | None = None
