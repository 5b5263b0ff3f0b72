"""Everything of one customer, deleted in batches while daemons run.

What lets the customer in goes first, and the subscriptions are disabled, so that nothing new begins; what is on its way
ends and is recorded before the log goes. A test sees that every table of the schema is named here. They are not taken
from the catalogue: a role that is called dealix makes its own tables in this schema, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, LiteralString

import trio
from psycopg import errors, sql

from daemon.ids import CustomerId, SubscriptionId
from daemon.store import subscriptions
from daemon.store.connection import Connection
from daemon.store.shards import MEMBER_CLASS

BATCH: Final = 5000
"""Rows of a transaction: some ten milliseconds, and never many locks."""
LOOK_S: Final = 0.1

FIRST: Final = ("api_keys", "portal_links")
"""By which the customer comes in. Sessions of the portal go with them."""
BY_CUSTOMER: Final = (
    "event_keys", "test_events", "events", "attempts", "daily_stats", "hourly_stats", "recoveries", "listeners",
    "heard",
)  # fmt: skip
"""Emptied of the customer's rows by their customer_id."""
INDIRECT: Final = (
    "subscriptions", "subscription_health", "endpoint_alerts", "roster", "outbox", "deliveries", "portal_sessions",
)  # fmt: skip
"""Dealt with by name below, or by the schema."""

# Partitions each by itself, also one that is detached and not dropped yet.
_TABLES: Final = r"""
SELECT t.name, c.relname
FROM unnest(%(tables)s::text[]) WITH ORDINALITY AS t (name, place)
JOIN pg_class c ON regexp_replace(c.relname, '_\d{8}$', '') = t.name
WHERE c.relnamespace = 'dealix'::regnamespace AND c.relkind = 'r'
ORDER BY t.place, c.relname
"""

_DELETE: Final = sql.SQL("""
DELETE FROM {partition}
WHERE ctid = ANY (ARRAY(SELECT ctid FROM {partition} WHERE customer_id = %(customer_id)s LIMIT %(batch)s))
""")

_SUBSCRIPTIONS: Final = """
SELECT id
FROM dealix.subscriptions
WHERE customer_id = %(customer_id)s
ORDER BY id
"""

# Locks the rows. Daemons hold from then on what is not on its way.
_DISABLE: Final = """
UPDATE dealix.subscriptions
SET enabled = false, disabled_reason = 'requested'
WHERE customer_id = %(customer_id)s AND enabled
"""

# A claim whose lease goes on: a request is on its way, or its result.
_ON_THE_WAY: Final = """
SELECT EXISTS (
    SELECT FROM dealix.deliveries
    WHERE shard = dealix.shard_of(%(customer_id)s) AND due > now() AND claimed
      AND subscription_id = ANY (%(ids)s::text[]))
"""

_DAEMONS: Final = """
SELECT count(*)
FROM pg_locks
WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid::bigint = %(member)s
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

# Rows from before the column have no customer_id.
_OUTBOX: Final = """
DELETE FROM dealix.outbox
WHERE ctid = ANY (ARRAY(
    SELECT ctid
    FROM dealix.outbox
    WHERE shard = dealix.shard_of(%(customer_id)s)
      AND (customer_id = %(customer_id)s OR subscription_ids && %(ids)s::text[])
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED))
"""

_DELIVERIES: Final = """
DELETE FROM dealix.deliveries
WHERE ctid = ANY (ARRAY(
    SELECT ctid
    FROM dealix.deliveries
    WHERE shard = dealix.shard_of(%(customer_id)s) AND subscription_id = ANY (%(ids)s::text[])
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED))
"""

_ALERTS: Final = "DELETE FROM dealix.endpoint_alerts WHERE subscription_id = %(id)s"

# Deleting a subscription puts it there, for the owner of the shard to look after; there is nothing left to look after.
_ROSTER: Final = """
DELETE FROM dealix.roster r
WHERE r.subscription_id = %(id)s
  AND NOT EXISTS (SELECT FROM dealix.deliveries d WHERE d.subscription_id = r.subscription_id)
"""


class Purge:
    """One purge. `patience_s` is how long requests on their way may take to end and be recorded."""

    def __init__(self, conn: Connection, customer_id: CustomerId, *, patience_s: float) -> None:
        self._conn = conn
        self._customer_id = customer_id
        self._patience_s = patience_s
        self._counts: Counter[str] = Counter()

    async def run(self) -> dict[str, int]:
        """Delete everything; how many rows of each table there were.

        It ends when a pass over all tables found nothing: what an emitter commits later is new.
        """
        await self._empty_all(FIRST)
        found = -1
        while found < (found := self._counts.total()):
            await self._end_deliveries()
            await self._empty_all(BY_CUSTOMER)
        return {name: count for name, count in sorted(self._counts.items()) if count}

    async def _end_deliveries(self) -> None:
        """Duties first, then the subscriptions: broken off between, the next purge finds both."""
        whose = {"customer_id": self._customer_id}
        await self._conn.execute(_DISABLE, whose)
        ids: list[SubscriptionId] = [
            row[0] for row in await (await self._conn.execute(_SUBSCRIPTIONS, whose)).fetchall()
        ]
        await self._settle(ids)
        await self._count("outbox", _OUTBOX, ids)
        await self._count("deliveries", _DELIVERIES, ids)
        for subscription_id in ids:
            async with self._conn.transaction():
                deleted = await subscriptions.delete(self._conn, subscription_id)
                alerts = await self._conn.execute(_ALERTS, {"id": subscription_id})
                await self._conn.execute(_ROSTER, {"id": subscription_id})
            if deleted:
                self._counts.update(subscriptions=1, subscription_health=1, endpoint_alerts=alerts.rowcount)

    async def _settle(self, ids: list[SubscriptionId]) -> None:
        """Wait until nothing is on its way, where daemons run that could bring it to its end."""
        ends_at = trio.current_time() + self._patience_s
        while trio.current_time() < ends_at:
            ((daemons,),) = await (await self._conn.execute(_DAEMONS, {"member": MEMBER_CLASS})).fetchall()
            cursor = await self._conn.execute(_ON_THE_WAY, {"customer_id": self._customer_id, "ids": ids})
            ((on_the_way,),) = await cursor.fetchall()
            if not (daemons and on_the_way):
                return
            await trio.sleep(LOOK_S)

    async def _empty_all(self, tables: Sequence[str]) -> None:
        cursor = await self._conn.execute(_TABLES, {"tables": list(tables)})
        for name, partition in await cursor.fetchall():
            await self._empty(name, partition)

    async def _empty(self, name: str, partition: str) -> None:
        try:
            await self._count(name, _DELETE.format(partition=sql.Identifier("dealix", partition)), [])
        except errors.UndefinedTable:  # retention was quicker
            return

    async def _count(self, name: str, statement: LiteralString | sql.Composed, ids: list[SubscriptionId]) -> None:
        parameters = {"customer_id": self._customer_id, "ids": ids, "batch": BATCH}
        while True:
            deleted = (await self._conn.execute(statement, parameters)).rowcount
            self._counts[name] += deleted
            if deleted < BATCH:
                return
