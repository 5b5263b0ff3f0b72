"""One Postgres connection, native to Trio: psycopg's AsyncConnection with its own way to wait, lock and give up.

psycopg does its protocol in generators that say when they would block; here Trio waits for them. This is the one file
that uses private names of psycopg (all in `tests/store/test_connection.py`, which fails where a release renames one).

What differs from psycopg is what happens when the wait is cancelled. Trio cancels by level: after a cancel every
further await fails too, unless it is shielded. So each interruption opens a *grace* of at most GRACE_S, shielded, in
which the server is told to stop and its last answer is read. Three ends are possible:

- The answer says that the statement was done: `wait` returns it, as if the cancel had come a moment later (it comes
  at the next checkpoint). So a cancelled statement, COMMIT above all, is one that did not happen.
- The answer says that it was not done: Cancelled goes on, the connection is as usable as before.
- No answer, or one that leaves the session amid something (pipeline, COPY, stream): the connection is closed. A
  COMMIT that ends this way raises CommitUnknown in place of Cancelled, which a `move_on_after` would swallow.

A connection belongs to one task at a time; its lock only keeps single statements apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, NoReturn, TypeVar, cast

import psycopg
import trio
from psycopg import AsyncPipeline, AsyncTransaction, Notify, _queries
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import AsyncRowFactory, TupleRow, tuple_row
from psycopg.waiting import Ready, Wait
from typing_extensions import override

from daemon.errors import CommitUnknown, DatabaseUnavailable
from daemon.store.hosts import parameters, resolve, share, split
from daemon.store.outage import first_line, outage
from daemon.store.waiting import Turns, drive, drive_dialogue, poll, ready

GRACE_S: Final = 1.0
"""How long an interrupted statement may take to end, and a ROLLBACK. With a database that is frozen this is added to
the caller's deadline; 1 s keeps an API answer of 503 within 2 s."""

_queries.MAX_CACHED_STATEMENT_LENGTH = 16_384
"""psycopg forgets how it read statements of over 4 KiB: 75 µs for the recorder's, each time."""

_CANCEL_AGAIN_S: Final = 0.2
"""A cancel request that comes between two steps of one statement (PREPARE, EXECUTE) hits nothing: ask again."""

_INTERRUPTIONS: Final = (trio.Cancelled, KeyboardInterrupt)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Answer(Generic[_T]):
    value: _T


class Connection(psycopg.AsyncConnection[TupleRow]):
    """A connection made by `connect`. psycopg's API, with these differences.

    `transaction()` may not be opened inside `pipeline()` (the other way round is fine and as fast) and does not commit
    silently what failed; `notifies()` is replaced by `next_notifies`. Cancelled: see the head of this file.
    """

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[TupleRow] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.lock = cast("Any", Turns())  # psycopg declares asyncio's, and uses it in `async with` only
        self._grace_ends: float | None = None
        self._committing = False
        self._arrived: deque[Notify] = deque()
        self.add_notify_handler(self._arrived.append)
        self.unreplicated = False
        """Whether a commit of this session ended its wait for a synchronous standby before the standby had it."""
        self.add_notice_handler(self._note_unreplicated)

    @classmethod
    async def open(cls, conninfo: str) -> Connection:
        """A connection to the one address that `conninfo` names. Raises psycopg.OperationalError."""
        gen = cls._connect_gen(conninfo)
        try:
            connection = await drive_dialogue(gen)
        finally:
            gen.close()  # a half-made connection is closed now, not when the traceback is forgotten
        await connection.set_autocommit(True)  # does not talk to the server
        return connection

    @override
    async def wait(self, gen: PQGen[_T], interval: float = 0.0, timeout: float | None = None) -> _T:
        """Run a protocol generator to its end. Everything that psycopg sends passes through here.

        `interval` and `timeout` are there for the signature of psycopg; deadlines are cancel scopes of the caller.
        """
        running = False
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # before anything is sent
            running = True
            return await drive(gen, self.pgconn.socket)
        except psycopg.Error as e:
            if e.diag.severity_nonlocalized in {"FATAL", "PANIC"}:
                self._abort()  # the server hangs up after it, and some of psycopg's ways out would not notice
            raise
        except _INTERRUPTIONS as interruption:
            answer = await self._settle(gen if running else None)
            if answer is None or isinstance(interruption, KeyboardInterrupt):
                raise
            return answer.value

    @override
    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Ask the server to stop the running statement. Raises psycopg.OperationalError where it cannot be asked."""
        if self.closed:
            return
        with self._grace(), trio.move_on_after(timeout):
            await drive_dialogue(self._cancel_gen())

    @override
    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncGenerator[AsyncTransaction]:
        """A transaction, or a savepoint inside one. Committed at the end of the block, rolled back by an exception.

        Left normally, it is committed. Left by Cancelled or any other exception, it is not; only CommitUnknown
        leaves that open. A block that ends well after a failed statement raises InFailedSqlTransaction: the server
        would answer that COMMIT with a ROLLBACK, and psycopg would take it for a success.
        """
        if self.pgconn.pipeline_status != PipelineStatus.OFF:
            raise psycopg.ProgrammingError("open the transaction first, and the pipeline inside it")
        outermost = self.pgconn.transaction_status == TransactionStatus.IDLE
        tx = AsyncTransaction(self, savepoint_name, force_rollback)
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            await tx.__aenter__()
        except _INTERRUPTIONS:
            if tx.status != AsyncTransaction.Status.NOT_STARTED:
                self._abort()  # psycopg's own way back was interrupted too: it counts a level that is not there
            raise
        try:
            yield tx
            await trio.lowlevel.checkpoint_if_cancelled()
            if not force_rollback:
                self._check_committable()
        except BaseException as e:
            with self._grace():
                swallowed = await tx.__aexit__(type(e), e, e.__traceback__)
                if swallowed:  # psycopg.Rollback, made for leaving this block
                    return
            raise
        if force_rollback:
            with self._grace():
                await tx.__aexit__(None, None, None)
        else:
            await self._commit(lambda: tx.__aexit__(None, None, None), outermost=outermost)

    @override
    async def commit(self) -> None:
        """COMMIT, for connections that are not in autocommit. Raises CommitUnknown."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_committable()
        await self._commit(super().commit, outermost=True)

    @override
    async def rollback(self) -> None:
        """ROLLBACK, also when cancelled. Where it does not end within GRACE_S the connection is closed instead."""
        with self._grace():
            await super().rollback()

    @override
    @asynccontextmanager
    async def pipeline(self) -> AsyncGenerator[AsyncPipeline]:
        """Statements are sent without waiting for the answers of those before. Cancelled, it closes the connection."""
        outermost = self.pgconn.pipeline_status == PipelineStatus.OFF
        try:
            async with super().pipeline() as pipeline:
                yield pipeline
        except BaseException:
            if outermost:
                await self._leave_pipeline()
            raise

    async def next_notifies(self, timeout_s: float) -> list[Notify]:
        """What has arrived on the channels that are LISTENed to, also during other statements; oldest first.

        Waits for the first one, up to `timeout_s`; an empty list after that. A cancel loses none.
        Raises DatabaseUnavailable when the connection is gone.
        """
        try:
            async with self.lock:
                with trio.move_on_after(timeout_s):
                    self._read_notifies()
                    while not self._arrived:
                        await ready(self.pgconn.socket, Wait.R)
                        self._read_notifies()
        except psycopg.Error as e:
            raise outage(e, connection_lost=True) or e from e
        arrived = list(self._arrived)
        self._arrived.clear()
        return arrived

    @override
    def notifies(self, *, timeout: float | None = None, stop_after: int | None = None) -> NoReturn:
        """Not here: an async generator cannot be cancelled without losing what it holds."""
        raise psycopg.NotSupportedError("use next_notifies")

    @override
    async def close(self) -> None:
        """Close the connection, also under another task that waits for it. Never waits for the server."""
        if not self.closed:
            trio.lowlevel.notify_closing(self.pgconn.socket)
            await super().close()

    @override
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        try:
            if exc_type is None and not self.autocommit:
                await self.commit()
        finally:
            await self.close()

    def _read_notifies(self) -> None:
        self.pgconn.consume_input()
        while (notify := self.pgconn.notifies()) is not None:
            if self.pgconn.notify_handler is not None:
                self.pgconn.notify_handler(notify)

    def _note_unreplicated(self, notice: psycopg.errors.Diagnostic) -> None:
        # A warning beside the success of a statement that was cancelled meanwhile; its text depends on the language.
        if notice.source_function == "SyncRepWaitForLSN":
            self.unreplicated = True

    def _check_committable(self) -> None:
        if self.closed:
            raise psycopg.OperationalError("the connection was lost inside the transaction")
        if self.pgconn.transaction_status == TransactionStatus.INERROR:
            raise psycopg.errors.InFailedSqlTransaction("a statement of this transaction failed: it cannot commit")

    async def _commit(self, act: Callable[[], Awaitable[object]], *, outermost: bool) -> None:
        self._committing = True
        try:
            await act()
        except BaseException as e:
            # An answered COMMIT leaves the connection open, whatever the answer.
            if outermost and self.closed:
                detail = f": {first_line(e)}" if isinstance(e, psycopg.Error) else " in time"
                raise CommitUnknown(f"the COMMIT was not answered{detail}") from e
            raise
        finally:
            self._committing = False

    async def _leave_pipeline(self) -> None:
        """After an error in it, whose rest the server has skipped, PREPAREs too, which psycopg believes were done."""
        if self.pgconn.pipeline_status != PipelineStatus.OFF:  # answers are missing: the backend was killed
            self._abort()
        elif self.pgconn.transaction_status == TransactionStatus.IDLE:  # else the ROLLBACK forgets them
            with self._grace():
                await self.execute("DEALLOCATE ALL", prepare=False)

    async def _settle(self, gen: PQGen[_T] | None) -> _Answer[_T] | None:
        """End what was interrupted: its answer if it succeeded after all, else None."""
        answer = None
        whole = self.pgconn.pipeline_status == PipelineStatus.OFF
        if self._grace_ends is None:
            with self._grace():
                if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                    answer = await self._last_answer(gen if whole else None)
            if whole and self.pgconn.transaction_status != TransactionStatus.ACTIVE and not self.closed:
                return answer
        # Else this is the grace itself that has run out.
        self._abort()
        if gen is not None:
            with suppress(psycopg.Error, RuntimeError):  # what it would still say to the server
                gen.close()
        return None

    async def _last_answer(self, gen: PQGen[_T] | None) -> _Answer[_T] | None:
        while True:
            # A COMMIT is left alone: cancelling its wait for a synchronous standby would make it a success without.
            if not self._committing:
                await self._request_cancel()
            if gen is None:
                return None
            with trio.move_on_after(_CANCEL_AGAIN_S):
                try:
                    return _Answer(await drive(gen, self.pgconn.socket, resumed=True))
                except psycopg.Error:
                    return None

    async def _request_cancel(self) -> None:
        try:
            await drive_dialogue(self._cancel_gen())
        except psycopg.Error:
            return  # then the statement ends by itself, or the grace does

    @contextmanager
    def _grace(self) -> Generator[None]:
        """Shielded for GRACE_S in all, however deep; then the connection is closed and the block left."""
        outermost = self._grace_ends is None
        if self._grace_ends is None:
            self._grace_ends = trio.current_time() + GRACE_S
        try:
            with trio.CancelScope(deadline=self._grace_ends, shield=True) as scope:
                yield
            if scope.cancelled_caught:
                self._abort()
        finally:
            if outermost:
                self._grace_ends = None

    def _abort(self) -> None:
        if not self.closed:
            trio.lowlevel.notify_closing(self.pgconn.socket)
            self.pgconn.finish()


async def connect(  # noqa: PLR0913 all but the first are named at the call
    conninfo: str,
    *,
    timeout_s: float,
    application_name: str,
    prepare_threshold: int | None = 2,
    options: Mapping[str, str] | None = None,
    admit: Callable[[Connection], Awaitable[None]] | None = None,
) -> Connection:
    """A connection in autocommit to the first host of `conninfo` that answers and fits `target_session_attrs`.

    Several hosts are tried in turn, and each one's addresses; every one gets its share of the `timeout_s` that are
    left, so that a mute one does not use up the time of those after it. `connect_timeout` of the URL has no effect.
    `options` are server settings for the session, name to value. `prepare_threshold`: after how many uses a statement
    is prepared; None for never, as behind a pooler that cannot keep them. `admit` looks at each connection before it is
    taken; where it raises DatabaseUnavailable the next host is tried.

    Raises DatabaseUnavailable, with what each address said, and SettingsInvalid for a malformed `conninfo`.
    """
    params = parameters(conninfo, options) | {"application_name": application_name}
    failures: list[str] = []
    hosts = split(params)
    deadline = trio.current_time() + timeout_s
    for i, host in enumerate(hosts):
        host_deadline = share(deadline, len(hosts) - i)
        addresses: list[dict[str, str]] = []
        with trio.CancelScope(deadline=host_deadline):
            try:
                addresses = await resolve(host)
            except DatabaseUnavailable as e:
                failures.append(str(e))
                continue
        if not addresses:
            failures.append(f"host {host.get('host')}: its name was not resolved in time")
        for j, address in enumerate(addresses):
            connection = await _try_address(address, share(host_deadline, len(addresses) - j), failures, admit)
            if connection is not None:
                connection.prepare_threshold = prepare_threshold
                return connection
    text = "; ".join(failures)
    if "unsupported startup parameter" in text:  # PgBouncer's words
        text += " (a pooler, which takes no settings of a session: set database.direct_url)"
    if password := params.get("password"):
        text = text.replace(password, "…")
    raise DatabaseUnavailable(f"cannot connect to the database: {text}")


async def _try_address(
    address: Mapping[str, str],
    deadline: float,
    failures: list[str],
    admit: Callable[[Connection], Awaitable[None]] | None,
) -> Connection | None:
    place = f"{address.get('host') or address.get('hostaddr') or 'the default host'}, port {address.get('port', 5432)}"
    with trio.CancelScope(deadline=deadline):
        try:
            connection = await Connection.open(make_conninfo("", **address))
        except psycopg.Error as e:
            failures.append(first_line(e).removeprefix("connection failed: "))
            return None
        try:
            if admit is not None:
                await admit(connection)
        except (DatabaseUnavailable, psycopg.Error) as e:
            await connection.close()
            failures.append(f"{place}: {first_line(e) if isinstance(e, psycopg.Error) else e}")
            return None
        except BaseException:
            await connection.close()
            raise
        return connection
    failures.append(f"{place}: no answer in time")
    return None


def is_readable(connection: Connection) -> bool:
    """Whether something waits to be read. On an idle connection that does not LISTEN: that it is about to end."""
    return poll(connection.pgconn.socket) in {Ready.R, Ready.RW}
