"""Where a look into the outbox may begin: behind what was taken a while ago.

What is taken leaves dead entries at the head of the index. Usually the looks after it clear them away. While any
transaction of the cluster keeps an old snapshot (a dump, a report, a forgotten session) nobody may, and every look from
the head walks over all of them: 81 ms after 100,000. An emit can be overtaken, though: its row has a lower id than
others that committed before it. So the mark lags behind, and from time to time a look does begin at the head, the more
seldom the longer that takes.
"""

from __future__ import annotations

from typing import Final

import trio

from daemon.actors.ownership import Ownership
from daemon.store import outbox
from daemon.store.claims import Claimed, Room
from daemon.store.connection import Connection

LAG_S: Final = 2.0
"""Emits whose transaction ends sooner than this after the emit are never overtaken by the mark."""
REST: Final = 20
"""After a look from the head so many times its duration passes before the next one,"""
LONGEST_REST_S: Final = 5.0
"""but no more: so late can be what committed long after it was emitted, in a database that is in such trouble."""


class Bookmark:
    """Of one daemon; ids taken by shard, as they were at the last two turns of LAG_S. `name_events`: see `fan_out`."""

    def __init__(self, ownership: Ownership, *, name_events: bool) -> None:
        self._ownership = ownership
        self._name_events = name_events
        self._term = -1
        self._taken: dict[int, int] = {}
        self._recent: dict[int, int] = {}
        self._mark: dict[int, int] = {}
        self._turn_at = 0.0
        self._whole_at = 0.0

    async def look(self, conn: Connection, shards: frozenset[int], room: Room) -> Claimed:
        """`outbox.fan_out`, from the mark or from the head."""
        began = trio.current_time()
        self._turn(began)
        is_whole = began >= self._whole_at
        after = {} if is_whole else self._mark
        claimed = await outbox.fan_out(conn, shards, room, after, name_events=self._name_events)
        if is_whole:
            self._whole_at = began + min(REST * (trio.current_time() - began), LONGEST_REST_S)
        self._taken |= claimed.last
        return claimed

    def _turn(self, now: float) -> None:
        if self._term != self._ownership.term:  # others took rows since; after a failover ids may even go back
            self._term = self._ownership.term
            self._taken, self._recent, self._mark = {}, {}, {}
            self._whole_at = now
        if now >= self._turn_at:
            self._mark, self._recent = self._recent, dict(self._taken)
            self._turn_at = now + LAG_S
