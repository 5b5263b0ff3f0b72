"""What the floors hand each other: frozen values without behaviour of their own.

Those that are made for every delivery are msgspec structs: a frozen dataclass of nine fields costs 1.3 µs to make, 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

import msgspec

from daemon.ids import AttemptId, CustomerId, DeliveryId, EventId, SubscriptionId

ErrorKind = Literal["dns", "connect", "tls", "timeout", "blocked", "protocol", "reset"]
"""Why an exchange brought no complete header block: the name did not resolve, no TCP connection, no TLS, the deadline,
an address that must not be connected to, an answer that is not HTTP, or a connection that ended too early."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
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


class Event(msgspec.Struct, frozen=True, gc=False):
    """An event as it is sent: `body` is the whole envelope, made once and shared by all its deliveries.

    `matched` subscriptions got it by fan-out. `traceparent` is what it was emitted with, as it is stored.
    """

    id: EventId
    type: str
    customer_id: CustomerId
    created_at: datetime
    body: bytes
    matched: int = 0
    traceparent: str | None = None


class FannedOut(msgspec.Struct, frozen=True, gc=False):
    """An event that fan-out took out of the outbox, for its span."""

    id: EventId
    customer_id: CustomerId
    traceparent: str | None
    matched: int


class Claim(msgspec.Struct, frozen=True, gc=False):
    """A delivery that this daemon has claimed: attempt number `attempt` is on record and is its to make.

    `steps` of the retry schedule were used before. `version` is the subscription's configuration as the claim saw it.
    """

    delivery_id: DeliveryId
    event_id: EventId
    event_day: date
    event_type: str
    subscription_id: SubscriptionId
    shard: int
    attempt: int
    steps: int
    version: int


class Job(msgspec.Struct, frozen=True, gc=False):
    """A claim with the event it is about: what an actor's mailbox holds. `term` is the fence's when it was claimed."""

    claim: Claim
    event: Event
    term: int


@dataclass(frozen=True, slots=True)
class SubscriptionConfig:
    """What an actor starts from: configuration, sealed secrets, and the health that the database remembers.

    `reopen_in_s` is how long an open breaker still stays open by the database's clock, None while it is closed.
    """

    id: SubscriptionId
    customer_id: CustomerId
    endpoint_url: str
    enabled: bool
    version: int
    secret_sealed: bytes
    previous_secret_sealed: bytes | None
    previous_secret_expires_at: datetime | None
    propagate_trace_context: bool
    consecutive_failures: int
    cooldown_s: float
    reopen_in_s: float | None


class AttemptRecord(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One attempt as it goes into the log, and what becomes of its delivery.

    `action`: "finish" deletes the delivery, "retry" makes it due again `wait_s` from now with one step more used,
    "log" leaves deliveries alone (test-fires). Finish and retry apply only while the delivery is still claimed as
    attempt number `attempt`: a result that comes late changes nothing but the log.
    `gone`: a 410 that disables the subscription. `circuit`, `cooldown_s`, `reopen_in_s`: the breaker afterwards;
    without `circuit` it stays as it is in the database. `traceparent`: the header as it was sent.
    """

    action: Literal["finish", "retry", "log"]
    delivery_id: DeliveryId | None
    attempt: int
    wait_s: float
    id: AttemptId
    created_at: datetime
    customer_id: CustomerId
    subscription_id: SubscriptionId
    event_id: EventId
    event_day: str
    event_type: str
    outcome: str
    success: bool
    endpoint_url: str
    status_code: int | None
    error: str | None
    duration_ms: int
    signature: str | None
    webhook_signature: str | None
    response_headers: str | None
    response_body: str | None
    response_truncated: bool
    gone: bool
    circuit: Literal["closed", "open"] | None
    cooldown_s: float
    reopen_in_s: float | None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class TestFired:
    """What a test-fire came to."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    event_id: EventId
    attempt_id: AttemptId
    status_code: int | None
    success: bool
    duration_ms: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Readiness:
    """What has to be up before this process counts as ready. `shards` is how many of the 64 it works on."""

    listening: bool
    shards: int
