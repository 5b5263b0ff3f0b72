"""How much may be in flight: a wide limit for all, a slow budget for requests that wait, a narrow gate for CPU work.

Without the slow budget 32 hanging endpoints with 8 requests each would fill the wide limit and stall everybody for
the whole time-out. Without the gate every turn of the event loop runs every runnable sender: 1,000 of them put the
API's p50 at 445 ms instead of 3.5 (docs/decisions.md).

Trio's CapacityLimiter goes through the scheduler even where there is room, twice for each request: these do not.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import trio

SLOW_AFTER_S: Final = 1.0
"""A request older than this makes room in the wide limit and counts against the slow budget."""
SWEEP_S: Final = 0.1
GATE: Final = 16
"""Senders that sign and write in one turn of the event loop. More gains no throughput and costs the API its latency."""
NARROW: Final = 4
"""The same while somebody waits for an answer of the API, which takes many turns."""


class Gate:
    """Lets `GATE` tasks pass in each turn of the event loop, in the order in which they came. `run` is a task.

    The face is a limiter's, for the sender; but a place comes back by itself in the next turn. While many wait, half of
    the places is for those who come, since parking and waking costs a delivery a tenth of its CPU.
    """

    def __init__(self) -> None:
        self._width = GATE
        self._left = GATE
        self.guests = 0
        self._waiting = trio.lowlevel.ParkingLot()
        self._used = trio.lowlevel.ParkingLot()

    async def acquire(self) -> None:
        """Pass. Not a checkpoint where there is room: whoever passes is about to wait for an answer."""
        if self._left == 0:
            await self._waiting.park()  # whoever wakes it has counted it
            return
        if self._left == self._width:
            self._used.unpark()
        self._left -= 1

    def release(self) -> None:
        """Nothing: see above."""

    @contextmanager
    def narrowed(self) -> Generator[None]:
        """From the next turn on fewer pass, for as long as this lasts for anybody."""
        self.guests += 1
        try:
            yield
        finally:
            self.guests -= 1

    def waiting(self) -> int:
        """Tasks that wait to pass."""
        return len(self._waiting)

    async def run(self) -> None:
        """Open again in each turn that follows one in which somebody passed. Never ends."""
        while True:
            if self._left == self._width:
                await self._used.park()
            else:
                await trio.lowlevel.checkpoint()
            self._width = NARROW if self.guests else GATE
            passing = min(self._width // 2, len(self._waiting))
            self._waiting.unpark(count=passing)
            self._left = self._width - passing


@dataclass(frozen=True, slots=True)
class LaneUse:
    """A lane's places, how many are taken, and how many requests wait for one."""

    places: int
    taken: int
    waiting: int


class _Lane:
    """A number of places. One that is given back goes to whoever has waited longest."""

    __slots__ = ("_lot", "taken", "total")

    def __init__(self, total: int) -> None:
        self._lot = trio.lowlevel.ParkingLot()
        self.taken = 0
        self.total = total

    def try_take(self) -> bool:
        """A place, if one is free."""
        if self.taken >= self.total:
            return False
        self.taken += 1
        return True

    async def wait(self) -> None:
        """A place, once somebody hands his over."""
        await self._lot.park()

    def give_back(self) -> None:
        """Hand a place on, or free it."""
        if self._lot:
            self._lot.unpark()
        else:
            self.taken -= 1

    def waiting(self) -> int:
        """Tasks that wait for a place."""
        return len(self._lot)

    def use(self) -> LaneUse:
        """All of that at this moment."""
        return LaneUse(self.total, self.taken, len(self._lot))


class _Visit:
    """One request's stay in a lane."""

    __slots__ = ("_lanes", "lane", "since")

    def __init__(self, lanes: Lanes, lane: _Lane) -> None:
        self._lanes = lanes
        self.lane = lane
        self.since = 0.0

    async def __aenter__(self) -> None:
        if not self.lane.try_take():
            await self.lane.wait()
        self._lanes.entered(self)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lanes.left(self)


class Lanes:
    """The limits of one daemon. `gate` is handed to the sender, which passes it to sign and write."""

    def __init__(self, *, max_in_flight: int, max_slow: int) -> None:
        self.gate = Gate()
        self._wide = _Lane(max_in_flight)
        self._slow = _Lane(max_slow)
        self._visits: dict[_Visit, None] = {}  # those in the wide lane, oldest first

    def enter(self, *, slow: bool) -> _Visit:
        """A place for one request, for `async with`. `slow`: an endpoint known to be slow uses the slow budget."""
        return _Visit(self, self._slow if slow else self._wide)

    def entered(self, visit: _Visit) -> None:
        """For the visit: it has its place."""
        if visit.lane is self._wide:
            visit.since = trio.current_time()
            self._visits[visit] = None

    def left(self, visit: _Visit) -> None:
        """For the visit: it ends, in whichever lane it is by now."""
        self._visits.pop(visit, None)
        visit.lane.give_back()

    def waiting(self) -> int:
        """How many requests wait for a place or for the gate: while many do, claiming more gains nothing."""
        return self._wide.waiting() + self.gate.waiting()

    def is_crowded(self) -> bool:
        """Whether the gate, that is the CPU, is what requests wait for: more of them at a time gains nothing."""
        return self.gate.waiting() > 0

    def in_flight(self) -> int:
        """Requests that hold a place, in both lanes."""
        return self._wide.taken + self._slow.taken

    def use(self) -> dict[str, LaneUse]:
        """Both lanes, by name."""
        return {"wide": self._wide.use(), "slow": self._slow.use()}

    async def run(self) -> None:
        """Keep the gate, and move requests that have become slow to the slow budget. Never ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.gate.run)
            while True:
                await trio.sleep(SWEEP_S)
                self._sweep(trio.current_time() - SLOW_AFTER_S)

    def _sweep(self, entered_before: float) -> None:
        """Oldest first, while the slow budget has room."""
        for visit in list(self._visits):
            if visit.since > entered_before or not self._slow.try_take():
                return
            visit.lane = self._slow
            del self._visits[visit]
            self._wide.give_back()
