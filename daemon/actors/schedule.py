"""What comes back by itself: retries that are due, leases that ended, held deliveries that may go again."""

from __future__ import annotations

from typing import Final

import trio

from daemon.actors.lanes import Lanes
from daemon.actors.ownership import Ownership
from daemon.actors.recorder import Recorder
from daemon.actors.roster import LEASE_S, Roster
from daemon.ids import SubscriptionId
from daemon.log import get
from daemon.store import queue
from daemon.store.connection import Connection
from daemon.store.pool import Pool

log = get("schedule")

TICK_S: Final = 0.5
MAX_WAITING: Final = 64
LOOK_S: Final = 0.01
QUERY_S: Final = 10.0


class Schedule:
    """Looks at the due index and at the roster of held deliveries, twice a second or when rung."""

    def __init__(self, pool: Pool, ownership: Ownership, roster: Roster, lanes: Lanes, recorder: Recorder) -> None:
        self._pool = pool
        self._ownership = ownership
        self._roster = roster
        self._lanes = lanes
        self._recorder = recorder

    async def run(self) -> None:
        """One tick after the other."""
        while True:
            await self._ownership.due_bell.wait(TICK_S)
            if self._ownership.shards:
                await self._claim_due()
                await self._wake_held()

    async def _claim_due(self) -> None:
        seen = queue.PER_SHARD
        while seen >= queue.PER_SHARD:
            while self._recorder.is_behind() or self._lanes.waiting() > MAX_WAITING:  # noqa: ASYNC110 - two counters
                await trio.sleep(LOOK_S)
            seen = await self._claim_batch()

    async def _claim_batch(self) -> int:
        """Claim up to 50 of each shard; how many were due."""
        async with self._pool.connection(QUERY_S) as conn:
            shards, term = self._ownership.shards, self._ownership.term  # now: the connection may have taken seconds
            with self._roster.ledger.claiming(shards):
                ripe = await queue.claim_due(
                    conn,
                    shards,
                    rooms=self._roster.rooms(),
                    default_room=self._roster.default_room(),
                    lease_s=LEASE_S,
                )
                await self._roster.take(conn, ripe.claims, ripe.held, term=term)
        return ripe.seen

    async def _wake_held(self) -> None:
        async with self._pool.connection(QUERY_S) as conn:
            waking, deleted = await queue.waking(conn, self._ownership.shards)
            if waking:
                await self._roster.wake(conn, waking)
            for subscription_id in deleted:
                await self._purge(conn, subscription_id)

    async def _purge(self, conn: Connection, subscription_id: SubscriptionId) -> None:
        """A chunk of what was held for a deleted subscription; once there is no more, it leaves the roster."""
        generation = await queue.roster_generation(conn, subscription_id)
        purged = await queue.purge_held(conn, subscription_id)
        if purged:
            log.info("deliveries.discarded", subscription_id=subscription_id, count=purged)
        elif generation is not None:
            await queue.strike(conn, subscription_id, generation)
