"""From the outbox to claimed deliveries: looks when it is rung, and by itself, since a ring is only a hint."""

from __future__ import annotations

from typing import Final

from daemon.actors.bookmark import Bookmark
from daemon.actors.claiming import Claiming
from daemon.actors.ownership import Ownership
from daemon.observe import Histogram
from daemon.store import outbox
from daemon.store.claims import Claimed, Room
from daemon.store.connection import Connection

POLL_S: Final = 0.5
"""Without a ring: how late an event can be whose ring was lost or never sent."""
QUICK_S: Final = 0.005
QUICK_LOOKS: Final = 4
"""After the last work, looks this far apart: an emitter that saw us at work has not rung, and commits just now."""
BUSY_AFTER: Final = 3
"""Looks in a row that found work, after which emitters are asked not to ring: each ring makes their commits queue."""


class Fanout:
    """The outbox reader of one daemon. `sizes` is told how many rows each look found, where it found any."""

    def __init__(self, claiming: Claiming, ownership: Ownership, sizes: Histogram) -> None:
        self._claiming = claiming
        self._ownership = ownership
        self._sizes = sizes
        self._bookmark = Bookmark(ownership)
        self._deep: frozenset[int] = frozenset()
        self._is_deep_turn = False
        self._after = outbox.START

    async def run(self) -> None:
        """Look, and look again at once while there is work; else wait for a ring."""
        in_a_row = 0
        quick = 0
        while True:
            claimed = await self._claiming.batch(self._look)
            if claimed.seen:
                self._sizes.add(claimed.seen)
            if claimed.seen or self._deep & self._ownership.shards:
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

    async def _look(self, conn: Connection, shards: frozenset[int], room: Room) -> Claimed:
        """At the shards of which more waits than a look takes, customer by customer, and at the others, by turns."""
        deep = self._deep & shards
        self._is_deep_turn = bool(deep) and (deep == shards or not self._is_deep_turn)
        if self._is_deep_turn:
            claimed = await outbox.fan_out_fairly(conn, deep, room, self._after)
            self._after = claimed.resume or outbox.START
            self._deep = deep if claimed.resume else claimed.deep
        else:
            claimed = await self._bookmark.look(conn, shards - deep, room)
            self._deep = deep | claimed.deep
        return claimed
