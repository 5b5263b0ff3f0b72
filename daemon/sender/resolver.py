"""Host names to addresses, in threads of its own, so that a silent name server holds up nobody but its own names."""

from __future__ import annotations

import math
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import trio

from daemon.sender.failure import Failure

_Entry = TypeVar("_Entry")

Resolve = Callable[[str], Sequence[str]]
"""Blocking: an ASCII host name to its numeric addresses, best first. Raises OSError where it has none."""

_THREADS: Final = 64
"""Look-ups at once. A look-up costs under 0.1 ms of CPU; what the bound limits is threads that wait on dead servers."""
_SLOW_THREADS: Final = 8
_SLOW_S: Final = 2.0
_SLOW_FOR_S: Final = 600.0
"""A name whose look-up took longer than `_SLOW_S` uses the few slow threads for the next ten minutes: names with dead
servers, however many, then leave the others theirs."""
_FAILED_FOR_S: Final = 3.0
"""A failed look-up is not repeated at once: eight deliveries to a dead name ask once."""
_MAX_REMEMBERED: Final = 4096


def system_resolve(host: str) -> list[str]:
    """Every address that getaddrinfo knows for `host`, IPv6 ones with their scope id if they have one."""
    # Bytes, because text would go through Python's IDNA codec. No AI_ADDRCONFIG: it hides addresses from the judge.
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for _, _, _, _, sockaddr in found]


class _Flight:
    """One look-up that is going on: who waits for it, and what came of it."""

    __slots__ = ("landed", "result", "waiting")

    def __init__(self) -> None:
        self.landed = trio.Event()
        self.waiting = 0
        self.result: tuple[str, ...] | Failure = Failure("dns", "The host name could not be looked up.")


class Resolver:
    """Looks names up, each name once at a time.

    A look-up is a system task rather than its first caller's: the caller may give up while others wait, and the
    thread cannot be stopped anyway. No answer is kept beyond the moment, as connections are long-lived.
    """

    def __init__(self, resolve: Resolve = system_resolve) -> None:
        self._resolve = resolve
        self._flights: dict[str, _Flight] = {}
        self._failed: OrderedDict[str, tuple[float, Failure]] = OrderedDict()
        self._slow: OrderedDict[str, float] = OrderedDict()
        self._lane = trio.CapacityLimiter(_THREADS)
        self._slow_lane = trio.CapacityLimiter(_SLOW_THREADS)
        self._thread_limiter = trio.CapacityLimiter(math.inf)  # the lanes are the limit; never Trio's shared default

    async def lookup(self, host: str) -> tuple[str, ...] | Failure:
        """The addresses of `host`, at least one. Wait as long as the caller's deadline lets it."""
        failed = self._failed.get(host)
        if failed is not None and failed[0] > trio.current_time():
            return failed[1]
        flight = self._flights.get(host)
        if flight is None:
            flight = self._flights[host] = _Flight()
            trio.lowlevel.spawn_system_task(self._fly, host, flight, name=f"lookup of {host}")
        flight.waiting += 1
        try:
            await flight.landed.wait()
        finally:
            flight.waiting -= 1
        return flight.result

    async def _fly(self, host: str, flight: _Flight) -> None:
        try:
            async with self._slow_lane if self._is_slow(host) else self._lane:
                if flight.waiting:  # else all callers have given up in the queue
                    flight.result = await self._ask(host)
        finally:
            del self._flights[host]
            flight.landed.set()

    async def _ask(self, host: str) -> tuple[str, ...] | Failure:
        started_at = trio.current_time()
        try:
            addresses = await trio.to_thread.run_sync(
                self._resolve, host, abandon_on_cancel=True, limiter=self._thread_limiter
            )
            result = tuple(dict.fromkeys(addresses)) or Failure("dns", f"The host name {host} has no address.")
        except socket.gaierror as e:
            again = e.errno == socket.EAI_AGAIN
            result = Failure(
                "dns", f"The host name {host} {'could not be looked up just now' if again else 'does not resolve'}."
            )
        except (OSError, UnicodeError, RuntimeError):  # RuntimeError: no thread to be had
            result = Failure("dns", f"The host name {host} could not be looked up.")
        now = trio.current_time()
        if now - started_at > _SLOW_S:
            _remember(self._slow, host, now + _SLOW_FOR_S)
        if isinstance(result, Failure):
            _remember(self._failed, host, (now + _FAILED_FOR_S, result))
        return result

    def _is_slow(self, host: str) -> bool:
        return self._slow.get(host, -math.inf) > trio.current_time()


def _remember(memory: OrderedDict[str, _Entry], host: str, entry: _Entry) -> None:
    memory[host] = entry
    memory.move_to_end(host)
    if len(memory) > _MAX_REMEMBERED:
        memory.popitem(last=False)
