"""Emitting from the daemon's side: the same `dealix.emit` that emitters call in SQL, with its refusals translated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import errors

from daemon.errors import EmitRejected
from daemon.ids import CustomerId, EventId
from daemon.store.connection import Connection


@dataclass(frozen=True, slots=True)
class NewEvent:
    """What is to be emitted. `payload` is JSON text, kept as it is; without an `event_id` of its own it gets one."""

    customer_id: str
    event_type: str
    payload: str
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Emitted:
    """An event that stands in the database once the transaction commits; `matched` subscriptions will get it."""

    event_id: EventId
    matched: int


# See 0002_emit.sql for what they lock: nothing that another emit waits for, but the same own event_id.
_EMIT: Final = """
SELECT e.event_id, e.matched
FROM dealix.emit(%(customer_id)s::text, %(event_type)s::text, %(payload)s::text, %(event_id)s::text) AS e
"""

# One statement, so one transaction also where none is open: the setting ends with it. Reading the setting's value in an
# argument has it set before emit runs.
_EMIT_TRACED: Final = """
WITH context AS MATERIALIZED (SELECT set_config('dealix.traceparent', %(traceparent)s, true) AS traceparent)
SELECT e.event_id, e.matched
FROM context
CROSS JOIN LATERAL dealix.emit(
    %(customer_id)s::text, %(event_type)s::text, %(payload)s::text, %(event_id)s::text,
    notify => context.traceparent IS NOT NULL
) AS e
"""

# Arrays in binary form: as text psycopg quotes each element by regular expressions, 212 µs for 860 bytes of JSON. 500
# such held the event loop for a tenth of a second. In binary form it is 1 µs.
_EMIT_BATCH: Final = """
SELECT e.ordinal, e.event_id, e.matched
FROM dealix.emit_batch(
    %(customer_ids)b::text[], %(event_types)b::text[], %(payloads)b::text[], %(event_ids)b::text[]
) AS e
"""

_EMIT_BATCH_TRACED: Final = """
WITH context AS MATERIALIZED (SELECT set_config('dealix.traceparent', %(traceparent)s, true) AS traceparent)
SELECT e.ordinal, e.event_id, e.matched
FROM context
CROSS JOIN LATERAL dealix.emit_batch(
    %(customer_ids)b::text[], %(event_types)b::text[], %(payloads)b::text[],
    CASE WHEN context.traceparent IS NOT NULL THEN %(event_ids)b::text[] END
) AS e
"""


async def emit(  # noqa: PLR0913 the arguments of dealix.emit, and its setting
    conn: Connection,
    customer_id: CustomerId,
    event_type: str,
    payload: str,
    event_id: str | None = None,
    *,
    traceparent: str | None = None,
) -> Emitted:
    """Emit one event, in the transaction that is open or in one of its own. Raises EmitRejected.

    A `traceparent` that is given stays that of an open transaction to its end.
    """
    event = NewEvent(customer_id, event_type, payload, event_id)
    _refuse_what_postgres_cannot_take(event, None)
    given = {"customer_id": customer_id, "event_type": event_type, "payload": payload, "event_id": event_id}
    try:
        if traceparent is None:
            cursor = await conn.execute(_EMIT, given)
        else:
            cursor = await conn.execute(_EMIT_TRACED, given | {"traceparent": traceparent})
    except _REFUSALS as e:
        raise _rejected(e) from None
    (row,) = await cursor.fetchall()
    return Emitted(*row)


async def emit_batch(conn: Connection, events: Sequence[NewEvent], *, traceparent: str | None = None) -> list[Emitted]:
    """Emit all of them or, raising EmitRejected with the index of the first that was refused, none. Same order.

    At most 1,000 at once, some MB of payload in all: they travel as one statement. `traceparent` is that of all.
    """
    for index, event in enumerate(events):
        _refuse_what_postgres_cannot_take(event, index)
    # Two batches with the same own ids in different orders would wait for each other for ever: so all take one order.
    order = sorted(range(len(events)), key=lambda i: (events[i].customer_id, events[i].event_id or ""))
    given: dict[str, object] = {
        "customer_ids": [events[i].customer_id for i in order],
        "event_types": [events[i].event_type for i in order],
        "payloads": [events[i].payload for i in order],
        "event_ids": [events[i].event_id for i in order],
    }
    try:
        if traceparent is None:
            cursor = await conn.execute(_EMIT_BATCH, given)
        else:
            cursor = await conn.execute(_EMIT_BATCH_TRACED, given | {"traceparent": traceparent})
    except _REFUSALS as e:
        raise _rejected(e, order) from None
    emitted: dict[int, Emitted] = {}
    for ordinal, made_id, matched in await cursor.fetchall():
        emitted[order[ordinal - 1]] = Emitted(made_id, matched)
    return [emitted[i] for i in range(len(events))]


_REFUSALS: Final = (errors.InvalidParameterValue, errors.InvalidTextRepresentation, errors.UniqueViolation)


def _rejected(error: errors.Error, order: Sequence[int] | None = None) -> EmitRejected:
    """Only the primary message: DETAIL and CONTEXT may quote the payload, which then ends up in somebody's log."""
    message = error.diag.message_primary or "the event was refused"
    if error.sqlstate == "22P02":
        message = f"payload is not valid JSON: {message}"
    # emit_batch puts the place of the refused event, counted from 1 in the order that it was given, into DATATYPE.
    place = error.diag.datatype_name
    index = order[int(place) - 1] if order is not None and place is not None else None
    return EmitRejected(error.sqlstate or "22023", message, index=index)


def _refuse_what_postgres_cannot_take(event: NewEvent, index: int | None) -> None:
    """Text that cannot travel: NUL, which Postgres has not, and lone surrogates, which are not UTF-8."""
    fields = {"customer_id": event.customer_id, "event_type": event.event_type, "payload": event.payload}
    for name, value in (fields | {"event_id": event.event_id or ""}).items():
        try:
            broken = b"\0" in value.encode()
        except UnicodeEncodeError:
            broken = True
        if broken:
            raise EmitRejected("22023", f"{name} contains a NUL or a lone surrogate, which is not text", index=index)
