"""Who works on which shard: session advisory locks, and what the session that holds them looks up at each check.

All statements here run on the one dedicated connection of a daemon. The locks live as long as that session: killed,
the daemon loses them within milliseconds; frozen, when the server ends the idle session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psycopg

from daemon.ids import DeliveryId, SubscriptionId
from daemon.store.connection import Connection
from daemon.store.outage import is_notify_queue_full

SHARDS: Final = 64
OWN_CLASS: Final = 1145372673
"""First key of the lock that says "this session works on shard N"."""
BUSY_CLASS: Final = 1145372674
"""First key of the lock that tells emitters that shard N's owner is looking anyway; dealix.emit probes it."""
MEMBER_CLASS: Final = 1145372675
"""First key of the shared lock that every working daemon holds: how many hold it is how many share the work."""

WAKE, DUE, CONFIG, RAW, HEARTBEAT = "dealix_wake", "dealix_due", "dealix_config", "dealix_emit", "dealix_heartbeat"
"""Channels: outbox rows came (payload: shard), a delivery was pulled forward, a subscription changed (payload: its
id), an event by raw NOTIFY (payload: the event), and a daemon's own proof that LISTEN still works."""


def shard_of(customer_id: str) -> int:
    """The shard of a customer, 0–63, as `dealix.shard_of` computes it."""
    return hashlib.sha256(customer_id.encode()).digest()[0] & (SHARDS - 1)


@dataclass(frozen=True, slots=True)
class Census:
    """How many daemons share the work, which shards somebody owns, and which of them this session."""

    members: int
    taken: frozenset[int]
    own: frozenset[int]


# Reads pg_locks (no row locks; a moment's shared hold of the lock manager's partitions, twice a second).
_CENSUS: Final = """
    SELECT l.classid::bigint::int, l.objid::bigint::int, count(*), bool_or(l.pid = pg_backend_pid())
    FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.classid::bigint IN (%(own)s, %(member)s)
    GROUP BY 1, 2
"""


async def census(conn: Connection) -> Census:
    """Count the members and list the owned shards."""
    rows = await (await conn.execute(_CENSUS, {"own": OWN_CLASS, "member": MEMBER_CLASS})).fetchall()
    return Census(
        members=sum(count for kind, _, count, _ in rows if kind == MEMBER_CLASS),
        taken=frozenset(shard for kind, shard, _, _ in rows if kind == OWN_CLASS),
        own=frozenset(shard for kind, shard, _, is_own in rows if kind == OWN_CLASS and is_own),
    )


async def join(conn: Connection) -> None:
    """Become a member: counted by every daemon's census from now on."""
    await conn.execute("SELECT pg_advisory_lock_shared(%(class)s, 0)", {"class": MEMBER_CLASS})


async def leave(conn: Connection) -> None:
    """Stop being counted; owned shards stay owned until they are given up."""
    await conn.execute("SELECT pg_advisory_unlock_shared(%(class)s, 0)", {"class": MEMBER_CLASS})


async def listen(conn: Connection) -> None:
    """Hear all channels, by one round trip."""
    await conn.execute("; ".join([f"LISTEN {channel}" for channel in (WAKE, DUE, CONFIG, RAW, HEARTBEAT)]))


async def heartbeat(conn: Connection, token: str) -> bool:
    """Send this daemon's own proof to itself; False where the server's NOTIFY queue is full."""
    try:
        await conn.execute("SELECT pg_notify(%(channel)s, %(token)s)", {"channel": HEARTBEAT, "token": token})
    except psycopg.Error as e:
        if is_notify_queue_full(e):
            return False
        raise
    return True


async def notify_queue_usage(conn: Connection) -> float:
    """How full the server's NOTIFY queue is, 0 to 1; it is one for all databases of the cluster."""
    ((usage,),) = await (await conn.execute("SELECT pg_notification_queue_usage()")).fetchall()
    return usage


# A frozen daemon is not always idle in the server's eyes: wake-ups fill its socket, and a backend that waits to write
# obeys no idle_session_timeout. The pids are fixed first: the planner may call a function before it filters.
_END_SILENT: Final = """
    WITH silent AS MATERIALIZED (
        SELECT DISTINCT a.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND l.classid::bigint IN (%(own)s, %(member)s)
          AND a.pid <> pg_backend_pid() AND a.usename = session_user
          AND a.state_change < now() - %(silent_s)s * interval '1 s'
    )
    SELECT pid FROM silent WHERE pg_terminate_backend(pid)
"""


async def end_silent(conn: Connection, *, silent_s: float) -> list[int]:
    """End the sessions of other daemons that own shards and have asked nothing for so long; returns their backends."""
    cursor = await conn.execute(_END_SILENT, {"own": OWN_CLASS, "member": MEMBER_CLASS, "silent_s": silent_s})
    return [pid for (pid,) in await cursor.fetchall()]


# A session keeps its application_name through DISCARD ALL. One that began a moment ago has not locked yet. The pids are
# fixed first, as above.
_END_LOCKLESS: Final = """
    WITH lockless AS MATERIALIZED (
        SELECT a.pid FROM pg_stat_activity a
        WHERE a.datname = current_database() AND a.usename = session_user
          AND a.application_name = current_setting('application_name')
          AND a.pid <> pg_backend_pid() AND a.backend_start < now() - %(newcomer_s)s * interval '1 s'
          AND NOT EXISTS (
              SELECT FROM pg_locks l
              WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
                AND l.classid::bigint IN (%(own)s, %(member)s))
    )
    SELECT pid FROM lockless WHERE pg_terminate_backend(pid)
"""


async def end_lockless(conn: Connection, *, newcomer_s: float) -> list[int]:
    """End the sessions of other daemons that have lost their locks (DISCARD ALL) and stand; returns their backends."""
    cursor = await conn.execute(_END_LOCKLESS, {"own": OWN_CLASS, "member": MEMBER_CLASS, "newcomer_s": newcomer_s})
    return [pid for (pid,) in await cursor.fetchall()]


async def try_own(conn: Connection, shards: Iterable[int]) -> list[int]:
    """Take those of the shards that are free; returns them."""
    return await _try_lock(conn, OWN_CLASS, shards)


async def disown(conn: Connection, shards: Iterable[int]) -> None:
    """Give shards up."""
    await _unlock(conn, OWN_CLASS, shards)


async def try_busy(conn: Connection, shards: Iterable[int]) -> list[int]:
    """Tell emitters not to wake us for these shards. Only ever tried for: an emitter may be probing this instant."""
    return await _try_lock(conn, BUSY_CLASS, shards)


async def idle(conn: Connection, shards: Iterable[int]) -> None:
    """Ask to be woken again."""
    await _unlock(conn, BUSY_CLASS, shards)


async def _try_lock(conn: Connection, lock_class: int, shards: Iterable[int]) -> list[int]:
    rows = await (
        await conn.execute(
            "SELECT shard FROM unnest(%(shards)s::int[]) AS shard WHERE pg_try_advisory_lock(%(class)s, shard)",
            {"shards": sorted(shards), "class": lock_class},
        )
    ).fetchall()
    return [shard for (shard,) in rows]


async def _unlock(conn: Connection, lock_class: int, shards: Iterable[int]) -> None:
    await conn.execute(
        "SELECT pg_advisory_unlock(%(class)s, shard) FROM unnest(%(shards)s::int[]) AS shard",
        {"shards": sorted(shards), "class": lock_class},
    )


# Index: the primary key, one probe for each active subscription. No locks. A subscription that is gone has NULL.
_CHANGED: Final = """
    SELECT known.id
    FROM unnest(%(ids)s::text[], %(versions)s::bigint[]) AS known (id, version)
    LEFT JOIN LATERAL (SELECT s.version FROM dealix.subscriptions s WHERE s.id = known.id OFFSET 0) AS s ON true
    WHERE s.version IS DISTINCT FROM known.version
"""


async def changed(conn: Connection, known: Mapping[SubscriptionId, int]) -> list[SubscriptionId]:
    """Of the subscriptions with the versions known here: those that changed since, or were deleted."""
    cursor = await conn.execute(_CHANGED, {"ids": list(known), "versions": list(known.values())})
    return [row[0] for row in await cursor.fetchall()]


# Index deliveries_due: of each shard only what is due within a lease, which is where every claimed row stands.
# Row locks on those, without a wait, as in queue.extend_leases: a result that is being recorded at this moment keeps
# its row from being due again, and should it not be recorded after all, the lease ends.
_RECOVER: Final = """
    UPDATE dealix.deliveries d SET due = now()
    WHERE d.ctid = ANY (ARRAY(
        SELECT o.ctid FROM dealix.deliveries o
        WHERE o.shard = ANY (%(shards)s::smallint[]) AND o.claimed
          AND o.due BETWEEN now() AND now() + %(lease_s)s * interval '1 s'
          AND ((o.id, o.attempt) IN (SELECT * FROM unnest(%(ids)s::bigint[], %(attempts)s::smallint[]))) IS NOT TRUE
        FOR UPDATE SKIP LOCKED))
"""


async def recover(
    conn: Connection, shards: Iterable[int], *, own: Sequence[tuple[DeliveryId, int]], lease_s: float
) -> int:
    """Make the claimed deliveries of shards that were just gained due at once, except those this daemon itself holds.

    Whoever claimed them is dead or has lost the shards. Returns how many there were.
    """
    cursor = await conn.execute(
        _RECOVER,
        {
            "shards": sorted(shards),
            "ids": [key for key, _ in own],
            "attempts": [attempt for _, attempt in own],
            "lease_s": lease_s,
        },
    )
    return cursor.rowcount
