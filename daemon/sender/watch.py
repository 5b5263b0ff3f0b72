"""The deadlines of exchanges on kept connections: one task watches all, where a cancel scope for each costs 20 µs."""

from __future__ import annotations

import trio

from daemon.sender.connection import Connection


class Watch:
    """All deadlines are the same time away when they are added, so the first added is the first to come."""

    def __init__(self) -> None:
        self._deadlines: dict[Connection, float] = {}
        self._is_watched = False

    def add(self, connection: Connection, deadline: float) -> None:
        """Expire `connection` at `deadline` (`trio.current_time()`), unless it is removed before."""
        self._deadlines[connection] = deadline
        if not self._is_watched:
            self._is_watched = True
            trio.lowlevel.spawn_system_task(self._run)

    def remove(self, connection: Connection) -> None:
        """Its exchange has ended."""
        self._deadlines.pop(connection, None)

    async def _run(self) -> None:
        """Sleeps from one deadline to the next, which under load is from one time-out to the next."""
        try:
            while self._deadlines:
                connection, deadline = next(iter(self._deadlines.items()))
                if deadline > trio.current_time():
                    await trio.sleep_until(deadline)
                else:
                    del self._deadlines[connection]
                    connection.expire()
        finally:
            self._is_watched = False
