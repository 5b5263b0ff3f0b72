"""The two kinds of session that deliver: pooled ones for queries, and the one that holds locks and listens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import psycopg
import trio

from daemon.store.connection import Connection, connect
from daemon.store.outage import outage

HOT: Final = {"enable_seqscan": "off", "jit": "off", "random_page_cost": "1.1"}
"""For the delivery path: its tables swing between empty and millions of rows, so that the planner's statistics are
wrong half of the time, and every statement there has its index."""
CONNECT_S: Final = 5.0
IDLE_SESSION_MS: Final = 5000
"""The server ends a session that is silent for so long: a frozen daemon loses its shards."""
CLOSE_S: Final = 1.0


@asynccontextmanager
async def dedicated(conninfo: str) -> AsyncGenerator[Connection]:
    """The session of the shards' owner. Its locks go with it, at the latest 5 s after the last sign of life.

    Raises DatabaseUnavailable, from the block too, as the pool's connections do.
    """
    conn = await connect(
        conninfo,
        timeout_s=CONNECT_S,
        application_name="dealix owner",
        options=HOT | {"idle_session_timeout": str(IDLE_SESSION_MS)},
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
