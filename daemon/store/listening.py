"""Streams of a customer's events: who listens, and what became visible since a position.

An event's emit notes it in `heard` where its customer has a row in `listeners`. A stream is given what lies after its
position, in the order of (xid, id), and below the horizon, the oldest transaction that is still running on the server:
there nothing can appear any more. So a transaction that stays open holds streams up, whatever it does, and what it
emits comes when it has committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, LiteralString

from daemon.ids import CustomerId, EventId
from daemon.store.connection import Connection
from daemon.store.events import EventRow, bounds_of_day

KEPT_S: Final = 3600.0
"""How long a broken stream can be taken up again. Each hour of a busy customer's is a few hundred megabytes."""
LOOK_LIMIT: Final = 500
"""Entries a look gives each stream, 100 bytes each."""
_BATCH: Final = 5000


@dataclass(frozen=True, slots=True)
class Position:
    """All at or before (xid, id) was given, of what was emitted since `start`, a value of heard.id."""

    start: int
    xid: int
    id: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One event that became visible."""

    xid: int
    id: int
    event_id: EventId
    event_day: date
    event_type: str


# nextval, so that a registration is later than the start of every stream that was there before it. An emitter reads the
# row without a lock; what its snapshot does not show yet, it does not note.
_REGISTER: Final = """
INSERT INTO dealix.listeners AS l (customer_id, since_id, until)
VALUES (%(customer_id)s, nextval('dealix.heard_id_seq'), now() + %(kept_s)s * interval '1 second')
ON CONFLICT (customer_id) DO UPDATE SET until = EXCLUDED.until
RETURNING since_id, kept_from
"""

_NOW: Final = """
SELECT last_value, pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint
FROM dealix.heard_id_seq
"""

_RENEW: Final = """
UPDATE dealix.listeners
SET until = now() + %(kept_s)s * interval '1 second'
WHERE customer_id = %(customer_id)s
  AND EXISTS (
      SELECT FROM dealix.api_keys
      WHERE id = %(key_id)s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()))
RETURNING since_id, kept_from
"""

_HORIZON: Final = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"

# One range of the primary key for each stream. The horizon was read before, in a snapshot of its own.
_LOOK: Final = """
SELECT w.number, h.xid, h.id, h.event_id, h.event_day, h.event_type
FROM unnest(%(customer_ids)s::text[], %(starts)s::bigint[], %(xids)s::bigint[], %(ids)s::bigint[])
     WITH ORDINALITY AS w (customer_id, start, xid, id, number)
CROSS JOIN LATERAL (
    SELECT e.xid, e.id, e.event_id, e.event_day, e.event_type
    FROM dealix.heard e
    WHERE e.customer_id = w.customer_id AND (e.xid, e.id) > (w.xid, w.id) AND e.xid < %(horizon)s AND e.id > w.start
    ORDER BY e.xid, e.id
    LIMIT %(limit)s
) h
ORDER BY w.number, h.xid, h.id
"""

# Index events_id of the partition; never prepared, since a generic plan could not prune.
_EVENTS: Final = """
SELECT id, customer_id, type, data, created_at, matched
FROM dealix.events
WHERE customer_id = %(customer_id)s AND id = ANY (%(event_ids)s::text[])
  AND created_at >= %(low)s AND created_at < %(high)s
"""

# First this, so that no broken stream is taken up again while its entries are being deleted.
_EXPIRE: Final = """
UPDATE dealix.listeners
SET kept_from = %(xid)s
WHERE until < now()
RETURNING customer_id
"""

# The row that emitters look for goes last, and only if nobody came meanwhile.
_END: Final = "DELETE FROM dealix.listeners WHERE customer_id = %(customer_id)s AND until < now()"

_DELETE_OF: Final = """
DELETE FROM dealix.heard
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM dealix.heard WHERE customer_id = %(customer_id)s AND xid < %(xid)s LIMIT %(batch)s))
"""

_KEEP_FROM: Final = "UPDATE dealix.listeners SET kept_from = %(xid)s WHERE kept_from < %(xid)s"

_DELETE_BELOW: Final = """
DELETE FROM dealix.heard
WHERE ctid = ANY (ARRAY(
    SELECT h.ctid
    FROM dealix.listeners l
    CROSS JOIN LATERAL (
        SELECT e.ctid FROM dealix.heard e WHERE e.customer_id = l.customer_id AND e.xid < %(xid)s LIMIT %(batch)s
    ) h
    LIMIT %(batch)s))
"""


async def begin(conn: Connection, customer_id: CustomerId) -> Position:
    """The position of a new stream: what is emitted from now on. `conn` is in autocommit, as all of these want it."""
    await _register(conn, customer_id)
    start, xmin, _ = await _now(conn)
    return Position(start, xmin, 0)


async def resume(conn: Connection, customer_id: CustomerId, position: Position) -> bool:
    """Whether a stream can go on after `position`, with nothing lost of what came since."""
    since_id, kept_from = await _register(conn, customer_id)
    last, _, xmax = await _now(conn)
    return since_id <= position.start <= last and kept_from <= position.xid <= xmax


async def renew(conn: Connection, customer_id: CustomerId, key_id: str, position: Position) -> bool:
    """Keep the customer's events noted. False if the stream has to end: its key is not valid, or it lags an hour."""
    cursor = await conn.execute(_RENEW, {"customer_id": customer_id, "key_id": key_id, "kept_s": KEPT_S})
    row = await cursor.fetchone()
    return row is not None and row[0] <= position.start and row[1] <= position.xid


async def horizon(conn: Connection) -> int:
    """Every transaction with a lower xid has ended, and later statements see what it committed."""
    ((xid,),) = await (await conn.execute(_HORIZON)).fetchall()
    return xid


async def look(conn: Connection, streams: Sequence[tuple[CustomerId, Position]], below: int) -> list[list[Entry]]:
    """What each stream has to be given next, LOOK_LIMIT entries at most; fewer mean that there is no more `below`."""
    found = [list[Entry]() for _ in streams]
    cursor = await conn.execute(
        _LOOK,
        {
            "customer_ids": [customer_id for customer_id, _ in streams],
            "starts": [position.start for _, position in streams],
            "xids": [position.xid for _, position in streams],
            "ids": [position.id for _, position in streams],
            "horizon": below,
            "limit": LOOK_LIMIT,
        },
    )
    rows: list[tuple[int, int, int, EventId, date, str]] = await cursor.fetchall()
    for row in rows:
        found[row[0] - 1].append(Entry(*row[1:]))
    return found


async def events_of(
    conn: Connection, customer_id: CustomerId, entries: Sequence[Entry]
) -> list[tuple[Entry, EventRow]]:
    """The events of `entries`, in their order; without those that a purge or the retention has removed."""
    if not entries:
        return []
    days = [entry.event_day for entry in entries]
    cursor = await conn.execute(
        _EVENTS,
        {
            "customer_id": customer_id,
            "event_ids": [entry.event_id for entry in entries],
            "low": bounds_of_day(min(days))[0],
            "high": bounds_of_day(max(days))[1],
        },
        prepare=False,
    )
    rows = {row[0]: EventRow(*row) for row in await cursor.fetchall()}
    return [(entry, rows[entry.event_id]) for entry in entries if entry.event_id in rows]


async def forget_below(conn: Connection, xid: int) -> None:
    """Delete what lies below `xid`, a horizon of an hour ago. Positions below it are not good from then on."""
    await conn.execute(_KEEP_FROM, {"xid": xid})
    await _in_batches(conn, _DELETE_BELOW, {"xid": xid})


async def forget_unheard(conn: Connection, below: int) -> None:
    """Stop noting the events of customers to whom nobody has listened for an hour. `below` is the present horizon.

    What an emitter notes in between stays until somebody listens to the customer again.
    """
    for (customer_id,) in await (await conn.execute(_EXPIRE, {"xid": below})).fetchall():
        await _in_batches(conn, _DELETE_OF, {"customer_id": customer_id, "xid": below})
        await conn.execute(_END, {"customer_id": customer_id})


async def _register(conn: Connection, customer_id: CustomerId) -> tuple[int, int]:
    cursor = await conn.execute(_REGISTER, {"customer_id": customer_id, "kept_s": KEPT_S})
    ((since_id, kept_from),) = await cursor.fetchall()
    return since_id, kept_from


async def _now(conn: Connection) -> tuple[int, int, int]:
    ((last, xmin, xmax),) = await (await conn.execute(_NOW)).fetchall()
    return last, xmin, xmax


async def _in_batches(conn: Connection, statement: LiteralString, parameters: dict[str, int | str]) -> None:
    while (await conn.execute(statement, parameters | {"batch": _BATCH})).rowcount == _BATCH:
        pass
