"""Bulk replays that run beside live traffic and behind it.

A recovery has a few deliveries on its way at a time, half of the requests that its endpoint gets at once, and the rest
stays in the tables where the walk finds it: nothing of it is held, so that nothing live ever waits behind it. It does
not go on while live work waits in its endpoint's mailbox or for fan-out, nor while the endpoint is disabled or its
breaker open; and a pause between two steps leaves the machine to others.
"""

from __future__ import annotations

from typing import Final

import trio

from daemon.actors.claiming import Claiming
from daemon.actors.delivery import MAILBOX
from daemon.actors.ownership import Ownership
from daemon.actors.roster import Roster
from daemon.ids import SubscriptionId
from daemon.log import get
from daemon.store import recovering
from daemon.store.claims import Claimed, Room
from daemon.store.connection import Connection
from daemon.store.recovering import Ended

log = get("recovery")

PAUSE_S: Final = 0.06
"""Between two steps. At four on their way these are some 60 deliveries a second for one endpoint. With a third of
the pause live events had a p99 1.66 times that of before, with this 1.2 times (`python -m bench recover`)."""
BUSY_PAUSE_S: Final = 0.1
"""The same while live events come so fast that emitters were asked not to ring."""
IDLE_S: Final = 0.5
"""Between looks where no recovery gets any further: the pause grows to this, as answers that take longer are few."""
GROWTH: Final = 1.5


class Recovery:
    """The recoveries of one daemon's shards."""

    def __init__(self, claiming: Claiming, ownership: Ownership, roster: Roster) -> None:
        self._claiming = claiming
        self._ownership = ownership
        self._roster = roster

    async def run(self) -> None:
        """One step after the other."""
        pause_s = IDLE_S
        while True:
            step = await self._claiming.batch(self._step)
            shortest_s = BUSY_PAUSE_S if self._ownership.is_busy else PAUSE_S
            pause_s = shortest_s if step.seen else min(max(pause_s * GROWTH, shortest_s), IDLE_S)
            await trio.sleep(pause_s)

    async def _step(self, conn: Connection, shards: frozenset[int], room: Room) -> Claimed:
        """As Claiming wants it; `seen` tells whether any recovery got further."""

        def spare(subscription_id: SubscriptionId, on_their_way: int) -> int:
            share = max(self._roster.window(subscription_id) // 2, 1)
            waiting = MAILBOX - room.known.get(subscription_id, room.default)
            return share - max(waiting, on_their_way)

        step = await recovering.step(conn, shards, spare=spare, lease_s=room.lease_s)
        for ended in step.ended:
            _tell(ended)
        return Claimed(step.claims, [], int(step.moved))


def _tell(ended: Ended) -> None:
    facts = {"recovery_id": ended.id, "subscription_id": ended.subscription_id}
    if ended.cancelled:
        log.info("recovery.cancelled", **facts, reason="the subscription was deleted")
    else:
        log.info("recovery.finished", **facts, done=ended.done, failed=ended.failed)
