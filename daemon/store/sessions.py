"""The ways to one database: pooled sessions for queries, one that holds locks and listens, others past a pooler."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import psycopg
import trio

from daemon.errors import DatabaseUnavailable
from daemon.store.connection import Connection, connect
from daemon.store.once import session
from daemon.store.outage import outage
from daemon.store.pool import Pool
from daemon.store.primary import Admit, Allegiance

HOT: Final = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "jit": "off",
    "random_page_cost": "1.1",
}
"""For the delivery path: its tables swing between empty and millions of rows, so that the planner's statistics are
wrong half of the time, and every statement there has its index, in whose order it reads. What is switched off is still
used where nothing else will do."""
READS: Final = {"jit": "off", "random_page_cost": "1.1"}
"""For everything else, the API above all: lists walk indexes of which the planner believes too late that they are all a
day needs, and what it would compile is over sooner."""
CONNECT_S: Final = 5.0
IDLE_SESSION_MS: Final = 5000
"""The server ends a session that is silent for so long: a frozen daemon loses its shards."""
CLOSE_S: Final = 1.0
DIRECT: Final = {"dealix.direct": "yes"}
"""A setting of our own, by which a session shows that nothing between us and the server has dropped its settings."""
RECHECK_S: Final = 2.0
"""Behind a pooler: how long a connection is taken to lead to the same server as before."""


@dataclass(frozen=True, slots=True)
class Database:
    """`url` is for queries; `direct_url` leads past a pooler, and is the same where there is none.

    A pooler in transaction mode gives each transaction another session: nothing of a session (settings, prepared
    statements, locks, LISTEN) may be expected of what goes through it.
    """

    url: str
    direct_url: str
    allegiance: Allegiance = field(default_factory=Allegiance)

    def pool(self, name: str, *, size: int, options: Mapping[str, str] = READS) -> Pool:
        """Connections for queries. `options`: server settings; behind a pooler they are the operator's to make."""
        behind = self.url != self.direct_url
        return Pool(
            self.url,
            size=size,
            name=name,
            prepare_threshold=None if behind else 2,
            options=None if behind else options,
            admit=self.allegiance.admit,
            recheck_s=RECHECK_S if behind else math.inf,
        )

    def owner(self) -> AbstractAsyncContextManager[Connection]:
        """The session of the shards' owner: see `dedicated`."""
        return dedicated(self.direct_url, admit=self._admit_direct)

    def session(self, name: str, deadline_s: float) -> AbstractAsyncContextManager[Connection]:
        """A session of its own for one piece of work that locks: see `once.session`."""
        return session(self.direct_url, name=name, deadline_s=deadline_s, options=DIRECT, admit=self._admit_direct)

    async def _admit_direct(self, conn: Connection) -> None:
        await _demand_direct(conn)
        await self.allegiance.admit(conn)


@asynccontextmanager
async def dedicated(conninfo: str, *, admit: Admit | None = None) -> AsyncGenerator[Connection]:
    """The session of the shards' owner. Its locks go with it, at the latest 5 s after the last sign of life.

    Raises DatabaseUnavailable, from the block too, as the pool's connections do.
    """
    conn = await connect(
        conninfo,
        timeout_s=CONNECT_S,
        application_name="dealix owner",
        options=HOT | DIRECT | {"idle_session_timeout": str(IDLE_SESSION_MS)},
        admit=admit,
    )
    try:
        yield conn
    except psycopg.Error as e:
        if unavailable := outage(e, connection_lost=conn.closed):
            raise unavailable from e
        raise
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
            await conn.close()


async def _demand_direct(conn: Connection) -> None:
    ((shown,),) = await (await conn.execute("SELECT current_setting('dealix.direct', true)")).fetchall()
    if shown != DIRECT["dealix.direct"]:
        raise DatabaseUnavailable("a pooler is in the way, which drops a session's settings: set database.direct_url")
