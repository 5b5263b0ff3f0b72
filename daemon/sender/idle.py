"""Idle keep-alive connections of all endpoints: each endpoint uses only its own, the cap and the age hold for all."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import trio

from daemon.sender.connection import Connection

IDLE_S: Final = 30.0
"""Most servers close theirs after 5 to 75 s; a longer wait earns few hits and holds 38 KiB each under TLS."""


class IdleShelf:
    """The connections laid aside, oldest first. The lists handed in belong to the endpoints and are kept in step."""

    def __init__(self, max_idle: int) -> None:
        self._max_idle = max_idle
        self._owners: OrderedDict[Connection, list[Connection]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._owners)

    def put(self, connection: Connection, owner: list[Connection]) -> None:
        """Lay `connection` aside for its `owner`. What is too old, or over the cap, is closed for it."""
        now = connection.idle_at = trio.current_time()
        owner.append(connection)
        self._owners[connection] = owner
        self._drop_older(now - IDLE_S)
        while len(self._owners) > self._max_idle:
            self._drop(next(iter(self._owners)))

    def take(self, owner: list[Connection]) -> Connection | None:
        """The connection that `owner` used last, if one is still usable."""
        while owner:
            connection = owner.pop()
            del self._owners[connection]
            if trio.current_time() - connection.idle_at < IDLE_S and connection.is_alive():
                return connection
            connection.close()
        return None

    def drop_expired(self) -> None:
        """Close what has been idle for `IDLE_S`. Costs nothing where nothing is."""
        self._drop_older(trio.current_time() - IDLE_S)

    def drop_owned(self, owner: list[Connection]) -> None:
        """Close all that `owner` has here."""
        for connection in tuple(owner):
            self._drop(connection)

    def drop_all(self) -> None:
        """Close every one."""
        for connection in tuple(self._owners):
            self._drop(connection)

    def close(self) -> None:
        """Close every one, and keep none from now on."""
        self._max_idle = 0
        self.drop_all()

    def _drop_older(self, limit_at: float) -> None:
        while self._owners and (oldest := next(iter(self._owners))).idle_at <= limit_at:
            self._drop(oldest)

    def _drop(self, connection: Connection) -> None:
        self._owners.pop(connection).remove(connection)
        connection.close()
