"""How one task wakes another: a flag that is cleared before the woken one looks, so that no ring is lost."""

from __future__ import annotations

import trio


class Doorbell:
    """Any number of rings before a look make one look."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        """Wake the owner, now or when it next waits."""
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a ring, at most `timeout_s`. True if it rang; the bell is silent again then."""
        with trio.move_on_after(timeout_s):
            await self._event.wait()
        rung = self._event.is_set()
        if rung:
            self._event = trio.Event()
        return rung

    async def answer(self) -> None:
        """Wait for a ring, however long: for tasks that live for what rings. The bell is silent again then."""
        await self._event.wait()
        self._event = trio.Event()
