"""Places for connections: a bound on how many there are, and who has to go when more want to come."""

from __future__ import annotations

from typing import Final

import trio

from api.connection import Connection

LOOK_AGAIN_S: Final = 0.05
"""Where nobody can go, somebody may be able to a moment later without leaving by himself."""


class Places:
    """At most `number` connections.

    A newcomer who finds all places taken gets that of the client who has kept us waiting longest. So strangers who
    connect and say nothing push out each other, while a request that comes whole needs its place for milliseconds.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._taken: set[Connection] = set()
        self._left = trio.Event()

    def __len__(self) -> int:
        return len(self._taken)

    async def take(self, connection: Connection) -> None:
        """Wait for a place, and make one where that is fair."""
        while len(self._taken) >= self._number:
            self._make_room()
            with trio.move_on_after(LOOK_AGAIN_S):
                await self._left.wait()
        self._taken.add(connection)

    async def hold(self, connection: Connection) -> None:
        """Run a connection that took a place, and give the place back."""
        try:
            await connection.run()
        finally:
            self._taken.discard(connection)
            self._left.set()
            self._left = trio.Event()

    def close_soon(self, within_s: float) -> None:
        """All of them shall go when they have been idle for so long."""
        for connection in self._taken:
            connection.close_soon(within_s)

    def _make_room(self) -> None:
        can_go = [one for one in self._taken if one.can_go]
        if can_go:
            min(can_go, key=lambda one: one.waiting_since).close()
