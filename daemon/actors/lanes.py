"""How much may be in flight: a wide limit for all, a slow budget for requests that wait, a narrow gate for CPU work.

Without the slow budget 32 hanging endpoints with 8 requests each would fill the wide limit and stall everybody for
the whole time-out. Without the gate every tick of the event loop runs every runnable sender: 1,000 of them put the
API's p50 at 445 ms instead of 3.5 (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import trio

SLOW_AFTER_S: Final = 1.0
"""A request older than this makes room in the wide limit and counts against the slow budget."""
SWEEP_S: Final = 0.1
GATE: Final = 8
"""Senders that sign and write at the same time. More gains no throughput and costs the API its latency."""


class Lanes:
    """The limits of one daemon. `gate` is handed to the sender, which holds it while it signs and writes."""

    def __init__(self, *, max_in_flight: int, max_slow: int) -> None:
        self.gate = trio.CapacityLimiter(GATE)
        self._wide = trio.CapacityLimiter(max_in_flight)
        self._slow = trio.CapacityLimiter(max_slow)
        self._entered: dict[object, float] = {}

    @asynccontextmanager
    async def enter(self, *, slow: bool) -> AsyncGenerator[None]:
        """Hold a place for one request. `slow`: an endpoint known to be slow goes to the slow budget at once."""
        token = object()
        limiter = self._slow if slow else self._wide
        await limiter.acquire_on_behalf_of(token)
        if not slow:
            self._entered[token] = trio.current_time()
        try:
            yield
        finally:
            # A token that was swept into the slow budget is not among the entered any more.
            home = self._slow if slow or self._entered.pop(token, None) is None else self._wide
            home.release_on_behalf_of(token)

    def waiting(self) -> int:
        """How many requests wait for a place or for the gate: while many do, claiming more gains nothing."""
        return self._wide.statistics().tasks_waiting + self.gate.statistics().tasks_waiting

    def in_flight(self) -> int:
        """Requests that hold a place, in both lanes."""
        return self._wide.borrowed_tokens + self._slow.borrowed_tokens

    async def run(self) -> None:
        """Move requests that have become slow to the slow budget, oldest first, while it has room."""
        while True:
            await trio.sleep(SWEEP_S)
            self._sweep(trio.current_time() - SLOW_AFTER_S)

    def _sweep(self, entered_before: float) -> None:
        for token, entered_at in list(self._entered.items()):
            if entered_at > entered_before:
                return
            try:
                self._slow.acquire_on_behalf_of_nowait(token)
            except trio.WouldBlock:
                return
            self._wide.release_on_behalf_of(token)
            del self._entered[token]
