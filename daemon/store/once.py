"""One connection for one piece of work, as the command line needs it: no pool, no patience, errors for people."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import psycopg
import trio

from daemon.errors import DatabaseRefused, DatabaseUnavailable
from daemon.store.connection import Connection, connect
from daemon.store.outage import first_line, outage
from daemon.store.primary import Admit

_CONNECT_S: Final = 10.0
_CLOSE_S: Final = 1.0


@asynccontextmanager
async def session(
    conninfo: str,
    *,
    name: str,
    deadline_s: float,
    options: Mapping[str, str] | None = None,
    admit: Admit | None = None,
) -> AsyncGenerator[Connection]:
    """A connection in autocommit for the block, which may take `deadline_s`; `name` is its application_name.

    `options` and `admit`: see `connect`.
    Raises DatabaseUnavailable, and DatabaseRefused for what the server answered with an error that nobody caught.
    """
    with trio.move_on_after(deadline_s) as scope:
        conn = await connect(conninfo, timeout_s=_CONNECT_S, application_name=name, options=options, admit=admit)
        try:
            yield conn
        except psycopg.Error as e:
            raise outage(e, connection_lost=conn.closed) or DatabaseRefused(
                f"the database refused: {first_line(e)} (SQLSTATE {e.sqlstate})"
            ) from e
        finally:
            with trio.move_on_after(_CLOSE_S, shield=True):
                await conn.close()
    if scope.cancelled_caught:
        raise DatabaseUnavailable(f"the database did not answer within {deadline_s:g} s")


async def server_version(conn: Connection) -> str:
    """As in `18.6` or `15.18 (Debian 15.18-0+deb12u1)`."""
    (row,) = await (await conn.execute("SELECT current_setting('server_version')")).fetchall()
    return row[0]
