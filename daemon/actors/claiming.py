"""How deliveries come into memory: when there is room, for shards that are ours, handed to their actors at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from daemon.actors.lanes import Lanes
from daemon.actors.ownership import Ownership
from daemon.actors.recorder import Recorder
from daemon.actors.roster import LEASE_S, Roster
from daemon.store.claims import NOTHING, Claimed, Room
from daemon.store.connection import Connection
from daemon.store.pool import Pool

MAX_WAITING: Final = 64
"""Requests waiting to be sent, above which claiming more would only move the queue from the tables into memory."""
MAX_STOCK: Final = 500
"""Claims in mailboxes, above which nothing more is claimed while the CPU is what they wait for. More would overflow the
mailboxes of busy endpoints, and what is held costs two statements more."""
LOOK_S: Final = 0.005
QUERY_S: Final = 10.0

Statement = Callable[[Connection, frozenset[int], Room], Awaitable[Claimed]]


class Claiming:
    """What fan-out and schedule have in common."""

    def __init__(self, pool: Pool, ownership: Ownership, roster: Roster, lanes: Lanes, recorder: Recorder) -> None:
        self._pool = pool
        self._ownership = ownership
        self._roster = roster
        self._lanes = lanes
        self._recorder = recorder

    async def batch(self, claim: Statement) -> Claimed:
        """Wait for room, run `claim`, hand over what it claimed; nothing without shards."""
        while self.has_enough():  # noqa: ASYNC110 - counters
            await trio.sleep(LOOK_S)
        async with self._pool.connection(QUERY_S) as conn:
            shards, term = self._ownership.shards, self._ownership.term  # now: the connection may have taken seconds
            if not shards:
                return NOTHING
            with self._roster.ledger.claiming(shards):
                room = Room(self._roster.rooms(), self._roster.default_room(), LEASE_S)
                claimed = await claim(conn, shards, room)
                await self._roster.take(conn, claimed, term=term)
        return claimed

    def has_enough(self) -> bool:
        """Whether to claim more would gain nothing at this moment."""
        if self._recorder.is_behind() or self._lanes.waiting() > MAX_WAITING:
            return True
        return self._lanes.is_crowded() and self._roster.waiting() > MAX_STOCK
