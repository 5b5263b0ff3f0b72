"""The proof, at any moment, that a shard is still ours; and which of ours are being given away."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import trio

FRESH_S: Final = 0.9
"""How old the start of the last good check may be when a POST starts. A disable therefore holds within a second."""


class Fence:
    """Written by ownership, read by every actor before it claims or sends."""

    def __init__(self) -> None:
        self.owned: set[int] = set()
        self.draining: set[int] = set()
        """Those of the owned that are being given away: what is in memory may be sent, nothing more is claimed."""
        self.term = 0
        """Grows whenever all is lost. What was claimed in an earlier term, others may have claimed anew since."""
        self._checked_at = -math.inf
        self._news = trio.Event()

    def checked(self, began: float) -> None:
        """A check that began at monotonic time `began` has succeeded."""
        self._checked_at = began
        self._wake()

    def lost(self, shards: Iterable[int]) -> None:
        """These shards are not ours any more."""
        gone = set(shards)
        self.owned -= gone
        self.draining -= gone
        self._wake()

    def lost_all(self) -> None:
        """The session is gone, and with it every shard."""
        self.term += 1
        self.lost(frozenset(self.owned))

    def passes(self, shard: int) -> bool:
        """Whether a POST for this shard may start at this instant."""
        return shard in self.owned and trio.current_time() - self._checked_at < FRESH_S

    def may_claim(self, shard: int) -> bool:
        """Whether deliveries of this shard may be claimed at this instant."""
        return shard not in self.draining and self.passes(shard)

    async def news(self) -> None:
        """Wait for the next check, or for the loss of shards.

        Bounded by ownership's own deadlines: its session either checks again or is given up, and the shards with it.
        """
        await self._news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()
