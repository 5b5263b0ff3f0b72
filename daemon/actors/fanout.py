"""From the outbox to claimed deliveries: looks when it is rung, and by itself, since a ring is only a hint."""

from __future__ import annotations

from typing import Final

import trio

from daemon.actors.lanes import Lanes
from daemon.actors.ownership import Ownership
from daemon.actors.recorder import Recorder
from daemon.actors.roster import LEASE_S, Roster
from daemon.store import outbox
from daemon.store.pool import Pool

POLL_S: Final = 0.5
"""Without a ring: how late an event can be whose ring was lost or never sent."""
QUICK_S: Final = 0.005
QUICK_LOOKS: Final = 4
"""After the last work, looks this far apart: an emitter that saw us at work has not rung, and commits just now."""
BUSY_AFTER: Final = 3
"""Looks in a row that found work, after which emitters are asked not to ring: each ring makes their commits queue."""
MAX_WAITING: Final = 64
"""Requests waiting to be sent, above which claiming more would only move the queue from the outbox into memory."""
QUERY_S: Final = 10.0


class Fanout:
    """The outbox reader of one daemon."""

    def __init__(self, pool: Pool, ownership: Ownership, roster: Roster, lanes: Lanes, recorder: Recorder) -> None:
        self._pool = pool
        self._ownership = ownership
        self._roster = roster
        self._lanes = lanes
        self._recorder = recorder

    async def run(self) -> None:
        """Look, and look again at once while there is work; else wait for a ring."""
        in_a_row = 0
        quick = 0
        while True:
            if await self._look():
                in_a_row += 1
                quick = QUICK_LOOKS
                if in_a_row >= BUSY_AFTER:
                    self._ownership.keep_busy()
                continue
            in_a_row = 0
            if quick > 0 or self._ownership.is_busy:
                quick -= 1
                await self._ownership.outbox_bell.wait(QUICK_S)
            else:
                await self._ownership.outbox_bell.wait(POLL_S)
                quick = 0

    async def _look(self) -> int:
        """Take one batch; how many events it had."""
        while self._recorder.is_behind() or self._lanes.waiting() > MAX_WAITING:  # noqa: ASYNC110 - two counters
            await trio.sleep(QUICK_S)
        if not self._ownership.shards:
            await trio.sleep(QUICK_S)
            return 0
        async with self._pool.connection(QUERY_S) as conn:
            shards, term = self._ownership.shards, self._ownership.term  # now: the connection may have taken seconds
            with self._roster.ledger.claiming(shards):
                batch = await outbox.fan_out(
                    conn,
                    shards,
                    rooms=self._roster.rooms(),
                    default_room=self._roster.default_room(),
                    lease_s=LEASE_S,
                )
                await self._roster.take(conn, batch.claims, batch.held, term=term)
        return batch.events
