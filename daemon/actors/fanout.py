"""From the outbox to claimed deliveries: looks when it is rung, and by itself, since a ring is only a hint."""

from __future__ import annotations

import math
import time
from typing import Final

import trio

from daemon.actors.bookmark import Bookmark
from daemon.actors.claiming import Claiming
from daemon.actors.ownership import Ownership
from daemon.observe import Histogram
from daemon.store import outbox
from daemon.store.claims import Claimed, Room
from daemon.store.connection import Connection
from daemon.tracing import Tracer

POLL_S: Final = 0.5
"""Without a ring: how late an event can be whose ring was lost or never sent."""
QUICK_S: Final = 0.005
QUICK_LOOKS: Final = 4
"""While we are busy and a little longer, looks this far apart: an emitter that saw us busy does not ring, and may
commit just after."""
BUSY_ROWS: Final = 60
FLOW_S: Final = 0.1
"""So many rows in about that time, and emitters are asked not to ring. Commits that ring go one after the other, each
with its flush: 32 emitters fell from 3,500 events a second to 1,350. Looking by itself costs 4 % of a core."""
BUSY_LINGER_S: Final = 0.1
"""So long after a look that found such a flow. A look that has to wait for room does not end it."""


class Flow:
    """How many rows came lately: each counts for 1 when it comes, and for a third `FLOW_S` later."""

    def __init__(self) -> None:
        self._level = 0.0
        self._at = 0.0

    def add(self, rows: int) -> float:
        """Rows came; returns the level. A steady flow of N a second keeps it at about N times `FLOW_S`."""
        now = trio.current_time()
        self._level = self._level * math.exp((self._at - now) / FLOW_S) + rows
        self._at = now
        return self._level


class Fanout:
    """The outbox reader of one daemon. `sizes` is told how many rows each look found, where it found any."""

    def __init__(self, claiming: Claiming, ownership: Ownership, sizes: Histogram, tracer: Tracer | None) -> None:
        self._claiming = claiming
        self._ownership = ownership
        self._sizes = sizes
        self._tracer = tracer
        self._began_ns = 0
        self._bookmark = Bookmark(ownership, name_events=tracer is not None)
        self._flow = Flow()
        self._deep: frozenset[int] = frozenset()
        self._is_deep_turn = False
        self._after = outbox.START

    async def run(self) -> None:
        """Look: at once while a shard is deep, else when it rings, soon after there was work, and now and then."""
        quick = 0
        busy_until = 0.0
        while True:
            if self._claiming.has_enough():  # a ring would not make us look
                busy_until = self._keep_busy()
            claimed = await self._claiming.batch(self._look)
            if claimed.seen:
                self._sizes.add(claimed.seen)
                if self._tracer is not None:
                    self._tracer.fanned_out(claimed.fanned_out, started_ns=self._began_ns)
            if claimed.seen and self._flow.add(claimed.seen) >= BUSY_ROWS:
                busy_until = self._keep_busy()
            if trio.current_time() >= busy_until:
                self._ownership.rest()
            if self._ownership.is_busy:
                quick = QUICK_LOOKS
            if self._deep & self._ownership.shards:
                continue
            if quick > 0:
                quick -= 1
                await self._ownership.outbox_bell.wait(QUICK_S)
            else:
                await self._ownership.outbox_bell.wait(POLL_S)

    def _keep_busy(self) -> float:
        """Returns until when, unless it is renewed."""
        self._ownership.keep_busy()
        return trio.current_time() + BUSY_LINGER_S

    async def _look(self, conn: Connection, shards: frozenset[int], room: Room) -> Claimed:
        """At the shards of which more waits than a look takes, customer by customer, and at the others, by turns."""
        self._began_ns = time.time_ns()
        deep = self._deep & shards
        self._is_deep_turn = bool(deep) and (deep == shards or not self._is_deep_turn)
        if self._is_deep_turn:
            is_traced = self._tracer is not None
            claimed = await outbox.fan_out_fairly(conn, deep, room, self._after, name_events=is_traced)
            self._after = claimed.resume or outbox.START
            self._deep = deep if claimed.resume else claimed.deep
        else:
            claimed = await self._bookmark.look(conn, shards - deep, room)
            self._deep = deep | claimed.deep
        return claimed
