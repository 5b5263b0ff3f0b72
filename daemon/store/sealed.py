"""Sealed secrets as rows: which keys they need, sealing them anew, and which running daemons hold which keys.

A daemon shows the keys that it holds by shared advisory locks on its dedicated session, which end with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from daemon.errors import SealBroken
from daemon.ids import SubscriptionId
from daemon.sealing import KeyRing
from daemon.store.connection import Connection
from daemon.store.shards import MEMBER_CLASS, OWN_CLASS
from daemon.store.subscriptions import TABLE

BATCH: Final = 200

_OPENS_CLASS: Final = 1145372676
"""First key of the lock that says "this daemon opens with the key whose id begins with N"."""
_SEALS_CLASS: Final = 1145372677
"""The same for the one key that a daemon seals with."""
_ROTATION: Final = 0x6465616C69780003
"""Advisory lock of whoever rotates: `dealix` in ASCII, then 3."""


@dataclass(frozen=True, slots=True)
class Use:
    """A sealing key that secrets of so many subscriptions need. `key_id` has 8 bytes."""

    key_id: bytes
    subscriptions: int


@dataclass(slots=True)
class Resealed:
    """What one walk over all rows came to. `unreadable` do not open, though their key may be there: they were left."""

    subscriptions: int = 0
    unreadable: list[SubscriptionId] = field(default_factory=list[SubscriptionId])


# Reads the whole table, which is small. A former secret whose overlap is over needs no key any more.
_USES: Final = """
SELECT key_id, count(*)
FROM (
    SELECT id, substr(secret_sealed, 2, 8) AS key_id
    FROM dealix.subscriptions
    WHERE substr(secret_sealed, 1, 1) = '\\x01'::bytea
    UNION
    SELECT id, substr(previous_secret_sealed, 2, 8)
    FROM dealix.subscriptions
    WHERE previous_secret_expires_at > now() AND substr(previous_secret_sealed, 1, 1) = '\\x01'::bytea
) AS seals
GROUP BY key_id
ORDER BY key_id
"""

# Locks the rows; skips those that somebody else holds, which another walk finds: so nobody waits for us in a circle.
_FIND: Final = """
SELECT id, secret_sealed, CASE WHEN previous_secret_expires_at > now() THEN previous_secret_sealed END
FROM dealix.subscriptions
WHERE id > %(after)s
  AND (substr(secret_sealed, 2, 8) <> %(key_id)s::bytea
       OR substr(previous_secret_sealed, 2, 8) <> %(key_id)s::bytea)
ORDER BY id
LIMIT %(batch)s
FOR NO KEY UPDATE SKIP LOCKED
"""

# The setting keeps the table's triggers still: the configuration is the same as before, to customers and to daemons.
_BE_QUIET: Final = "SELECT set_config('dealix.resealing', 'on', true)"

_RESEAL: Final = """
UPDATE dealix.subscriptions s
SET secret_sealed = n.secret,
    previous_secret_sealed = n.previous,
    previous_secret_expires_at = CASE WHEN n.previous IS NOT NULL THEN s.previous_secret_expires_at END
FROM unnest(%(ids)s::text[], %(secrets)s::bytea[], %(previous)s::bytea[]) AS n (id, secret, previous)
WHERE s.id = n.id
"""

_TRY_ROTATE: Final = "SELECT pg_try_advisory_lock(%(key)s)"

# None of them ever waits: nobody takes these locks otherwise than shared.
_SHOW: Final = """
SELECT count(pg_advisory_lock_shared(%(class)s, key))
FROM unnest(%(keys)s::int[]) AS key
"""

_HIDE: Final = """
SELECT count(pg_advisory_unlock_shared(%(class)s, key))
FROM unnest(%(keys)s::int[]) AS key
"""

_BEHIND: Final = """
WITH locks AS MATERIALIZED (
    SELECT pid, classid::bigint AS class, objid::bigint AS key
    FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 2
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
SELECT count(DISTINCT d.pid)
FROM locks d
WHERE d.class IN (%(own)s, %(member)s)
  AND NOT EXISTS (SELECT FROM locks l WHERE l.pid = d.pid AND l.class = %(class)s AND l.key = %(key)s)
"""


async def uses(conn: Connection) -> list[Use]:
    """Which keys the secrets in the database need."""
    return [Use(*row) for row in await (await conn.execute(_USES)).fetchall()]


async def missing(conn: Connection, ring: KeyRing) -> list[Use]:
    """Those that the ring has not."""
    return [use for use in await uses(conn) if use.key_id not in ring.key_ids]


def say(found: Iterable[Use]) -> str:
    """For a person: the ids of keys and how many rows need each."""
    return ", ".join(f"{use.key_id.hex()} (needed by {use.subscriptions} subscriptions)" for use in found)


async def reseal(conn: Connection, ring: KeyRing) -> Resealed:
    """Walk once over all subscriptions and seal anew what another key than the ring's first was used for.

    A transaction for each batch: what is done stays done. Former secrets that expired are taken away.
    """
    walk, after = Resealed(), ""
    while True:
        async with conn.transaction():
            await conn.execute(_BE_QUIET)
            cursor = await conn.execute(_FIND, {"after": after, "key_id": ring.sealing_id, "batch": BATCH})
            rows = await cursor.fetchall()
            if not rows:
                return walk
            after = rows[-1][0]
            changed = [fresh for row in rows if (fresh := _resealed(ring, row, walk)) is not None]
            ids, secrets, previous = ([row[column] for row in changed] for column in range(3))
            await conn.execute(_RESEAL, {"ids": ids, "secrets": secrets, "previous": previous})
        walk.subscriptions += len(changed)


_Row = tuple[SubscriptionId, bytes, bytes | None]


def _resealed(ring: KeyRing, row: _Row, walk: Resealed) -> _Row | None:
    subscription_id, secret, previous = row
    try:
        opened = ring.open(secret, table=TABLE, column="secret", row=subscription_id)
        before = previous and ring.open(previous, table=TABLE, column="previous_secret", row=subscription_id)
    except SealBroken:
        walk.unreadable.append(subscription_id)
        return None
    return (
        subscription_id,
        ring.seal(opened, table=TABLE, column="secret", row=subscription_id),
        ring.seal(before, table=TABLE, column="previous_secret", row=subscription_id) if before else None,
    )


async def try_rotate(conn: Connection) -> bool:
    """Keep everybody else from rotating for as long as this session lasts; False where somebody does."""
    (row,) = await (await conn.execute(_TRY_ROTATE, {"key": _ROTATION})).fetchall()
    return row[0]


async def show(conn: Connection, key_ids: Sequence[bytes], *, shown: Sequence[bytes]) -> None:
    """Have this session tell which keys its daemon holds, the one that seals first; `shown` is what it told before."""
    for kind, held, before in ((_OPENS_CLASS, key_ids, shown), (_SEALS_CLASS, key_ids[:1], shown[:1])):
        await conn.execute(_SHOW, {"class": kind, "keys": [_number(k) for k in held if k not in before]})
        await conn.execute(_HIDE, {"class": kind, "keys": [_number(k) for k in before if k not in held]})


async def behind(conn: Connection, key_id: bytes, *, sealing: bool) -> int:
    """How many running daemons do not hold this key, or where it is about `sealing`, do not seal with it."""
    kind = _SEALS_CLASS if sealing else _OPENS_CLASS
    cursor = await conn.execute(
        _BEHIND, {"own": OWN_CLASS, "member": MEMBER_CLASS, "class": kind, "key": _number(key_id)}
    )
    (row,) = await cursor.fetchall()
    return row[0]


def _number(key_id: bytes) -> int:
    """The second key of the locks: 31 bits of the id."""
    return int.from_bytes(key_id[:4]) & 0x7FFF_FFFF
