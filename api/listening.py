"""Who listens to whose events: one task looks, twice a second, for all streams of this process.

A stream takes what it was offered and sends it at its client's pace. Until it has taken it, it is offered nothing more:
no client can make this process hold more than one look's entries for it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import trio

from api.errors import Problem
from api.limits import too_many
from daemon.actors.supervise import keep
from daemon.ids import CustomerId
from daemon.store import listening
from daemon.store.listening import KEPT_S, LOOK_LIMIT, Entry, Position
from daemon.store.pool import Pool

LOOK_S: Final = 0.5
"""Between two looks. Each is two statements, whatever the number of streams."""
STREAMS: Final = 32
"""Of one process. A stream holds a connection of the API and up to 3 MiB on its way out."""
STREAMS_OF_ONE: Final = 8
"""Of one customer: a developer or two."""
WORK_S: Final = 5.0
"""The deadline of a look, which takes milliseconds."""
TIDY_S: Final = 60.0
_TRY_AGAIN_S: Final = 5.0


class Listener:
    """One stream's place: what it was offered, and how far that reaches."""

    def __init__(self, customer_id: CustomerId, position: Position) -> None:
        self.customer_id = customer_id
        self.offered_to = position
        """Everything up to here was offered."""
        self.ended = False
        self._entries: list[Entry] = []
        self._news = trio.Event()

    @property
    def has_entries(self) -> bool:
        """Whether something was offered and not taken yet."""
        return bool(self._entries)

    def offer(self, entries: list[Entry], up_to: Position) -> None:
        """More entries, perhaps none, and the position after them."""
        self._entries += entries
        self.offered_to = up_to
        if entries:
            self._news.set()

    def end(self) -> None:
        """No more will come."""
        self.ended = True
        self._news.set()

    async def take(self) -> list[Entry]:
        """What was offered since the last time, waited for; none where there will be no more."""
        await self._news.wait()
        taken, self._entries = self._entries, []
        if not self.ended:
            self._news = trio.Event()
        return taken


class Tail:
    """All streams of this process."""

    def __init__(self, pool: Pool, stopping: trio.Event) -> None:
        self._pool = pool
        self._stopping = stopping
        self._listeners: list[Listener] = []
        self._somebody = trio.Event()
        self._horizons: deque[tuple[float, int]] = deque()

    def check_room(self, customer_id: CustomerId) -> None:
        """Raises Problem 429 where there are as many streams as there may be, 503 at a stop."""
        if self._stopping.is_set():
            raise Problem(503, "stopping", "The service is being stopped.", headers={"Retry-After": "2"})
        of_one = Counter(one.customer_id for one in self._listeners)[customer_id]
        if len(self._listeners) >= STREAMS or of_one >= STREAMS_OF_ONE:
            raise too_many(_TRY_AGAIN_S, "There are too many streams of events at the moment.")

    @contextmanager
    def listening(self, listener: Listener) -> Generator[None]:
        """Offer to `listener` within the block."""
        self.check_room(listener.customer_id)
        self._listeners.append(listener)
        self._somebody.set()
        try:
            yield
        finally:
            self._listeners.remove(listener)

    async def run(self) -> None:
        """Until the stop; then all streams end."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep, "event_streams", self._look_again_and_again)
                nursery.start_soon(keep, "event_streams_tidy", self._tidy)
                await self._stopping.wait()
                nursery.cancel_scope.cancel()
        finally:
            for one in self._listeners:
                one.end()

    async def _look_again_and_again(self) -> None:
        while True:
            if not self._listeners:
                self._somebody = trio.Event()
                await self._somebody.wait()
            await self._look()
            await trio.sleep(LOOK_S)

    async def _look(self) -> None:
        """Offer what became visible to those who have taken what they were offered before."""
        hungry = [one for one in self._listeners if not one.has_entries]
        if hungry:
            async with self._pool.connection(WORK_S) as conn:
                horizon = await listening.horizon(conn)
                found = await listening.look(conn, [(one.customer_id, one.offered_to) for one in hungry], horizon)
            for one, entries in zip(hungry, found, strict=True):
                one.offer(entries, _after(one.offered_to, entries, horizon))

    async def _tidy(self) -> None:
        """Once a minute: forget what has lain below the horizon for an hour, and those to whom nobody listens."""
        while True:
            await trio.sleep(TIDY_S)
            async with self._pool.connection(TIDY_S) as conn:
                horizon = await listening.horizon(conn)
                self._horizons.append((trio.current_time(), horizon))
                while self._horizons[0][0] < trio.current_time() - KEPT_S:
                    await listening.forget_below(conn, self._horizons[0][1])
                    self._horizons.popleft()
                await listening.forget_unheard(conn, horizon)


def _after(before: Position, entries: list[Entry], horizon: int) -> Position:
    """Where a stream stands after a look: at its last entry, or at the horizon where there was nothing more below."""
    if len(entries) == LOOK_LIMIT:
        return Position(before.start, entries[-1].xid, entries[-1].id)
    return Position(before.start, max(horizon, before.xid), before.id if before.xid >= horizon else 0)
