"""What the API is given to work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

from api.limits import Limits
from api.listening import Tail
from config.settings import Settings
from daemon.actors.vitals import Vitals
from daemon.ids import SubscriptionId
from daemon.model import Readiness, TestFired
from daemon.sealing import KeyRing
from daemon.sender.endpoint import Sender
from daemon.store.pool import Pool
from daemon.tracing import Tracer

FIRST_S: Final = 0.6
"""The deadline of a request's first question to the database, the key's look-up as a rule. With the second of grace
that an interrupted statement gets it keeps the 503 of a database that is away well below 2 s."""
WORK_S: Final = 5.0
"""The deadline of what follows, with a database that has just answered. A batch of a thousand events takes a
tenth of it on a busy machine."""


@dataclass(frozen=True, slots=True)
class Services:
    """`pool` is the API's own. `test_fire` returns None for a subscription that is not there, raises SealBroken.

    `guest` is entered while somebody waits for an answer: the sender leaves the event loop more room meanwhile.
    `tracer` is there where traces are on.
    """

    settings: Settings
    pool: Pool
    ring: KeyRing
    sender: Sender
    test_fire: Callable[[SubscriptionId, str], Awaitable[TestFired | None]]
    readiness: Callable[[], Readiness]
    vitals: Callable[[], Vitals]
    tail: Tail
    guest: Callable[[], AbstractContextManager[None]]
    tracer: Tracer | None = None
    limits: Limits = field(default_factory=Limits)
