"""How a Trio task waits for a libpq socket, and for its turn on a connection."""

from __future__ import annotations

import select
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, cast

import psycopg
import trio
from psycopg.abc import PQGen, PQGenConn
from psycopg.waiting import Ready, Wait

_T = TypeVar("_T")

READS: Final = 32
"""libpq reads 16 KB at a time: so many times in one turn of the event loop, if there is as much. With one, the 1.2 MB
of a thousand events took 80 turns, and half a second where a turn is full of senders."""


class Turns:
    """asyncio.Lock's part, without a checkpoint when it is free: a ROLLBACK under a cancel must get through.

    Fair. Taking it twice in one task (a statement inside a COPY or stream of the same connection) raises RuntimeError.
    """

    __slots__ = ("_holder", "_queue")

    def __init__(self) -> None:
        self._holder: trio.lowlevel.Task | None = None
        self._queue = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        task = trio.lowlevel.current_task()
        if self._holder is task:
            raise RuntimeError("this task is in the middle of another operation on the same connection")
        if self._holder is None:
            self._holder = task
        else:
            await self._queue.park()  # comes back as the holder

    async def __aexit__(self, *_: object) -> None:
        # Not only by the holder: an abandoned stream is closed by a task of Trio's.
        self._holder = next(iter(self._queue.unpark()), None)


async def drive(gen: PQGen[_T], fd: int, *, resumed: bool = False) -> _T:
    """Run a protocol generator to its end, waiting for `fd` whenever it would block.

    `resumed`: it was left at one of its waits, so it is told that nothing happened meanwhile.
    """
    try:
        want = gen.send(Ready.NONE) if resumed else next(gen)
        while True:
            want = gen.send(await ready(fd, want))
            for _ in range(READS - 1):
                if want != Wait.R or not poll(fd) & Ready.R:
                    break
                want = gen.send(Ready.R)
    except StopIteration as end:
        return cast("_T", end.value)


async def drive_dialogue(gen: PQGenConn[_T]) -> _T:
    """As `drive`, for generators whose socket changes on the way: connecting, and asking for a cancel."""
    try:
        fd, want = next(gen)
        while True:
            fd, want = gen.send(await ready(fd, want))
    except StopIteration as end:
        return cast("_T", end.value)


async def ready(fd: int, want: Wait) -> Ready:
    """Wait until `fd` is as `want` says. Always a checkpoint."""
    try:
        if want == Wait.R:
            await trio.lowlevel.wait_readable(fd)
            return Ready.R
        if want == Wait.W:
            await trio.lowlevel.wait_writable(fd)
            return Ready.W
        return await _either(fd)
    except (trio.ClosedResourceError, OSError) as e:
        raise psycopg.OperationalError("the connection was closed") from e


async def _either(fd: int) -> Ready:
    """Trio waits for one direction a task; both are wanted by pipelines and by statements larger than the buffers."""
    if not (ready := poll(fd)):
        try:
            async with trio.open_nursery() as nursery:
                for wait in (trio.lowlevel.wait_readable, trio.lowlevel.wait_writable):
                    nursery.start_soon(_first_of, nursery.cancel_scope, wait, fd)
        except* trio.Cancelled:
            pass  # the checkpoint below raises it again, alone and not wrapped in a group
        ready = poll(fd)
    await trio.lowlevel.checkpoint()
    return ready


async def _first_of(scope: trio.CancelScope, wait: Callable[[int], Awaitable[None]], fd: int) -> None:
    try:
        await wait(fd)
    except trio.ClosedResourceError:
        pass  # the poll says so
    finally:
        scope.cancel()


def poll(fd: int) -> Ready:
    """What `fd` is ready for at this moment."""
    poller = select.poll()
    poller.register(fd, select.POLLIN | select.POLLOUT)
    events = next((events for _, events in poller.poll(0)), 0)
    # Errors and hang-ups count as both: the next read or write tells.
    readable, writable = events & ~select.POLLOUT, events & ~select.POLLIN
    if readable and writable:
        return Ready.RW
    if readable:
        return Ready.R
    return Ready.W if writable else Ready.NONE
