"""Which server a session has reached, and the rule that all sessions of a process are on the newest primary it met.

After a failover the former primary may live on: cut off from the others, frozen, or not told yet. With several hosts
in the URL a daemon could then hold its locks on one server and work on the other, where somebody else holds them. Each
promotion begins a new timeline, so of two servers of one cluster the one with the higher timeline is right: the first
session that meets it ends all that are still on the former, and none goes back there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import psycopg

from daemon.errors import DatabaseUnavailable
from daemon.log import get
from daemon.store.connection import Connection
from daemon.store.outage import first_line, outage

log = get("database")

Admit = Callable[[Connection], Awaitable[None]]
"""Looks at a session before it is used. Raises DatabaseUnavailable where it must not be."""


@dataclass(frozen=True, slots=True)
class Primary:
    """`cluster` is Postgres' system identifier, common to a primary and its standbys; `timeline` counts promotions."""

    cluster: int
    timeline: int


# Reads the control file and the position in the WAL; no table. The control file's own timeline is that of the last
# checkpoint, which a promotion does not wait for.
_ASK: Final = """
    SELECT c.system_identifier, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int
    FROM pg_control_system() AS c
"""

_NOT_TOLD: Final = ("0A000", "42501", "42883")
"""Not supported, not allowed, not there: services that speak Postgres but keep such things to themselves."""
_IN_RECOVERY: Final = "55000"


async def ask(conn: Connection) -> Primary | None:
    """The primary that `conn` is on; None where the server does not tell. Raises DatabaseUnavailable on a standby."""
    try:
        ((cluster, timeline),) = await (await conn.execute(_ASK)).fetchall()
    except psycopg.Error as e:
        if e.sqlstate in _NOT_TOLD:
            return None
        if e.sqlstate == _IN_RECOVERY:
            raise DatabaseUnavailable("this server is a standby, which takes no writes", sqlstate=e.sqlstate) from e
        raise outage(e, connection_lost=conn.closed) or DatabaseUnavailable(
            f"the server does not say which one it is: {first_line(e)}", sqlstate=e.sqlstate
        ) from e
    return Primary(cluster, timeline)


class Allegiance:
    """The rule, for one process. Every session passes `admit` before it is used."""

    def __init__(self) -> None:
        self.primary: Primary | None = None
        self._sessions: WeakKeyDictionary[Connection, Primary] = WeakKeyDictionary()

    async def admit(self, conn: Connection) -> None:
        """Let a session pass that is on the newest primary; a newer one ends the sessions on the former.

        A server that does not tell which one it is passes. Raises DatabaseUnavailable.
        """
        found = await ask(conn)
        if found is None:
            return
        if self.primary is not None and found.cluster != self.primary.cluster:
            raise DatabaseUnavailable(
                "this is another database cluster than the one before (its system identifier differs): "
                "restart the daemon if that is meant"
            )
        if self.primary is not None and found.timeline < self.primary.timeline:
            raise DatabaseUnavailable(
                f"this is a former primary, on timeline {found.timeline}: {self.primary.timeline} was met already"
            )
        self._sessions[conn] = found
        if found != self.primary:
            await self._follow(found)

    async def _follow(self, found: Primary) -> None:
        former, self.primary = self.primary, found
        stale = [conn for conn, primary in self._sessions.items() if primary != found and not conn.closed]
        for conn in stale:
            await conn.close()  # whoever waits on it learns of a lost connection
        if former is not None:
            log.warning("database.failed_over", timeline=found.timeline, former=former.timeline, ended=len(stale))
