"""What comes back by itself: retries that are due, leases that ended, held deliveries that may go again."""

from __future__ import annotations

from typing import Final

import trio

from daemon.actors.claiming import Claiming
from daemon.actors.ownership import Ownership
from daemon.actors.roster import Roster
from daemon.ids import SubscriptionId
from daemon.log import get
from daemon.store import queue
from daemon.store.claims import Claimed, Room
from daemon.store.connection import Connection
from daemon.store.pool import Pool

log = get("schedule")

TICK_S: Final = 0.5
ASIDE_PAUSE: Final = 9.0
"""Pause after a batch of which most found no room, in multiples of the time that it took. A million that are due
together are to be laid aside, which is all that can be done with them, but in a tenth of one session's time. Of one
shard a batch sees little and is soon done: a flood there keeps its other retries for minutes, not for an hour."""
QUERY_S: Final = 10.0


class Schedule:
    """Looks at the due index and at the roster of held deliveries, twice a second or when rung."""

    def __init__(self, claiming: Claiming, pool: Pool, ownership: Ownership, roster: Roster) -> None:
        self._claiming = claiming
        self._pool = pool
        self._ownership = ownership
        self._roster = roster
        self._took_s = 0.0  # the last look

    async def run(self) -> None:
        """Look at what is due, and after each look at what is held: at once where more is due, else at the next tick.

        Laying a million aside takes minutes, and whoever is enabled or has cooled down meanwhile shall not wait for it.
        """
        while True:
            await self._ownership.due_bell.wait(TICK_S)
            more = True
            while more and self._ownership.shards:
                more = await self._claim_due()
                await self._wake_held()

    async def _claim_due(self) -> bool:
        """Whether there may be more."""
        claimed = await self._claiming.batch(self._look)
        if claimed.seen < queue.PER_SHARD:
            return False
        if len(claimed.claims) < claimed.seen / 2:
            await trio.sleep(min(ASIDE_PAUSE * self._took_s, TICK_S))
        return True

    async def _look(self, conn: Connection, shards: frozenset[int], room: Room) -> Claimed:
        started = trio.current_time()
        claimed = await queue.claim_due(conn, shards, room)
        self._took_s = trio.current_time() - started
        return claimed

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
