"""A pool of connections: a bounded number, made when needed, each lent to one task under one deadline.

No task of its own: connections are looked over when they are lent and given back. Lent last in, first out, so that a
quiet time leaves the rest unused and they are closed.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

import psycopg
import trio
from psycopg.pq import PipelineStatus, TransactionStatus

from daemon.errors import CommitUnknown, DatabaseUnavailable
from daemon.store.connection import Connection, connect, is_readable
from daemon.store.outage import makes_stale, outage
from daemon.store.primary import Admit

_BACKOFF_S: Final = (0.05, 1.0)
"""Pause after a failed connect: the first, and the longest after doubling. It is the pool's, not each waiter's."""

_SILENCE_S: Final = 0.5
"""A caller's deadline that ends a connect after this long counts as a failed one: callers with short deadlines shall
not all go on knocking at a server that is frozen."""

_UNUSED_S: Final = 60.0
"""A connection that nobody needed for this long is closed."""


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """Connections that are open, those of them not lent, and tasks that wait for a place."""

    open: int
    idle: int
    waiting: int


@dataclass(frozen=True, slots=True)
class _Idle:
    connection: Connection
    since: float
    expires_at: float
    admitted_at: float


class Pool:
    """At most `size` connections to `conninfo`; `name` is their application_name.

    `max_lifetime_s`: then a connection is replaced, so that memory of its backend does not grow for ever and a changed
    DNS entry or password is noticed. `options`: server settings for each session. `admit` looks at each new connection,
    and again after `recheck_s` where that is given: behind a pooler the server can change under a connection.
    """

    def __init__(  # noqa: PLR0913 settings of a pool, all named at the call
        self,
        conninfo: str,
        *,
        size: int,
        name: str,
        connect_timeout_s: float = 5.0,
        prepare_threshold: int | None = 2,
        max_lifetime_s: float = 3600.0,
        options: Mapping[str, str] | None = None,
        admit: Admit | None = None,
        recheck_s: float = math.inf,
    ) -> None:
        self._conninfo = conninfo
        self._name = name
        self._connect_timeout_s = connect_timeout_s
        self._prepare_threshold = prepare_threshold
        self._max_lifetime_s = max_lifetime_s
        self._options = options
        self._admit = admit
        self._recheck_s = recheck_s
        self._places = trio.Semaphore(size)
        self._lent = 0
        self._idle: deque[_Idle] = deque()  # the most recently used at the right
        self._closed = False
        self._failures = 0  # connects in a row
        self._last_failure = ""
        self._retry_at = 0.0
        self._trying = False  # one task tries to connect again
        self._news = trio.lowlevel.ParkingLot()  # for the tasks that wait for it, or for a connection to come back

    @asynccontextmanager
    async def connection(self, deadline_s: float) -> AsyncGenerator[Connection]:
        """A connection for the block, which as a whole may take `deadline_s`, waiting for a place included.

        It comes in autocommit, idle, without leftovers of a transaction; settings of the session (SET, LISTEN) are not
        undone. Raises DatabaseUnavailable: no connection in time, block not done in time (plus the grace of an
        interrupted statement, see `connection`), connection lost, server out of something. The text of a statement's
        own errors is left as it is.
        """
        with trio.move_on_after(deadline_s) as scope:
            lent = await self._lend()
            is_stale = False
            try:
                yield lent.connection
                if is_stale := lent.connection.unreplicated:
                    raise CommitUnknown("this was committed, but perhaps on no synchronous standby")
            except psycopg.Error as e:
                unavailable = outage(e, connection_lost=lent.connection.closed)
                is_stale = makes_stale(e)
                if unavailable is None:
                    raise
                raise unavailable from e
            finally:
                await self._take_back(lent, is_stale=is_stale)
        if scope.cancelled_caught:
            reason = f" ({self._last_failure})" if self._failures else ""
            raise DatabaseUnavailable(f"the database did not answer within {deadline_s:g} s{reason}")

    async def aclose(self) -> None:
        """Close what is idle now, and what is lent when it comes back. Nothing is lent any more."""
        self._closed = True
        while self._idle:
            await self._idle.pop().connection.close()

    def statistics(self) -> PoolStatistics:
        """The state at this moment."""
        idle = len(self._idle)
        return PoolStatistics(open=self._lent + idle, idle=idle, waiting=self._places.statistics().tasks_waiting)

    async def _lend(self) -> _Idle:
        try:
            self._places.acquire_nowait()  # spares a round of the scheduler, and waits where others wait already
        except trio.WouldBlock:
            await self._places.acquire()
        try:
            lent = await self._find_or_make()
        except BaseException:
            self._places.release()
            raise
        self._lent += 1
        return lent

    async def _find_or_make(self) -> _Idle:
        """An idle connection or a new one. While connecting fails, one task at a time tries again, after a pause."""
        while True:
            if self._closed:
                raise DatabaseUnavailable("the pool of database connections is closed")
            if (idle := await self._take_idle()) is not None:
                return idle
            if not self._failures:
                made = await self._make()
            elif not self._trying and trio.current_time() >= self._retry_at:
                made = await self._make_again()
            else:
                made = None
                with trio.CancelScope(deadline=math.inf if self._trying else self._retry_at):
                    await self._news.park()
            if made is not None:
                return made

    async def _take_idle(self) -> _Idle | None:
        while self._idle:
            idle = self._idle.pop()
            # After a restart of the server the idle ones have its farewell or the end of the stream to read.
            if not idle.connection.closed and not is_readable(idle.connection):
                if self._admit is None or trio.current_time() - idle.admitted_at < self._recheck_s:
                    return idle
                if (looked_at := await self._look_again(idle, self._admit)) is not None:
                    return looked_at
            await idle.connection.close()
        return None

    async def _look_again(self, idle: _Idle, admit: Admit) -> _Idle | None:
        try:
            await admit(idle.connection)
        except DatabaseUnavailable as e:
            self._last_failure = str(e)
            return None
        except BaseException:
            await idle.connection.close()
            raise
        return replace(idle, admitted_at=trio.current_time())

    async def _make_again(self) -> _Idle | None:
        self._trying = True
        try:
            return await self._make()
        finally:
            self._trying = False
            self._news.unpark_all()

    async def _make(self) -> _Idle | None:
        started = trio.current_time()
        try:
            connection = await connect(
                self._conninfo,
                timeout_s=self._connect_timeout_s,
                application_name=self._name,
                prepare_threshold=self._prepare_threshold,
                options=self._options,
                admit=self._admit,
            )
        except DatabaseUnavailable as e:
            self._failed(str(e))
            return None
        except trio.Cancelled:
            if trio.current_time() - started > _SILENCE_S:
                self._failed("no answer to a connect")
            raise
        self._failures = 0
        now = trio.current_time()
        # Spread, so that connections made together are not all replaced together.
        return _Idle(connection, now, now + self._max_lifetime_s * random.uniform(0.9, 1.0), now)  # noqa: S311 jitter

    def _failed(self, reason: str) -> None:
        first, longest = _BACKOFF_S
        pause = min(longest, first * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 jitter
        self._failures += 1
        self._last_failure = reason
        self._retry_at = trio.current_time() + pause

    async def _take_back(self, lent: _Idle, *, is_stale: bool) -> None:
        self._lent -= 1
        self._places.release()
        connection, now = lent.connection, trio.current_time()
        reusable = (
            not self._closed
            and not is_stale
            and not connection.closed
            and connection.pgconn.transaction_status == TransactionStatus.IDLE
            and connection.pgconn.pipeline_status == PipelineStatus.OFF
            and now < lent.expires_at
        )
        if connection.closed:
            # Lost, or silent until the deadline. The idle ones may have gone the same way without a word (a router that
            # lost its table, a promoted standby's address), and are not to be found out by one deadline each.
            while self._idle:
                await self._idle.pop().connection.close()
        if reusable:
            self._idle.append(_Idle(connection, now, lent.expires_at, lent.admitted_at))
            self._news.unpark()
        else:
            await connection.close()
        if self._idle and (oldest := self._idle[0]).since + _UNUSED_S < now:
            self._idle.popleft()
            await oldest.connection.close()
