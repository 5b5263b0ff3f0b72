"""The proof, at any moment, that a shard is still ours and that the news of it are fresh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

FRESH_S: Final = 0.9
"""How old the start of the last good check may be when a POST starts. A disable therefore holds within a second."""


class Fence:
    """Written by ownership, read by every actor before it sends."""

    def __init__(self) -> None:
        self.owned: set[int] = set()
        self._checked_at = -FRESH_S
        self._news = trio.Event()

    def checked(self, began: float) -> None:
        """A check that began at monotonic time `began` has succeeded."""
        self._checked_at = began
        self._wake()

    def lost(self, shards: Iterable[int]) -> None:
        """These shards are not ours any more."""
        self.owned.difference_update(shards)
        self._wake()

    def passes(self, shard: int) -> bool:
        """Whether a POST for this shard may start at this instant."""
        return shard in self.owned and trio.current_time() - self._checked_at < FRESH_S

    async def wait(self, shard: int) -> bool:
        """Wait until a POST for this shard may start: True; or until the shard is not ours: False.

        Bounded by ownership's own deadlines: its session either checks again or is given up, and the shards with it.
        """
        while shard in self.owned:
            if self.passes(shard):
                return True
            await self._news.wait()
        return False

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()
