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

import select
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, NoReturn, TypeVar, cast

import psycopg
import trio
from psycopg import AsyncPipeline, AsyncTransaction, Notify
from psycopg.abc import PQGen, PQGenConn
from psycopg.conninfo import make_conninfo
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import AsyncRowFactory, TupleRow, tuple_row
from psycopg.waiting import Ready, Wait
from typing_extensions import override

from daemon.errors import CommitUnknown, DatabaseUnavailable
from daemon.store.hosts import parameters, resolve, split
from daemon.store.outage import first_line, outage

GRACE_S: Final = 1.0
"""How long an interrupted statement may take to end, and a ROLLBACK. With a database that is frozen this is added to
the caller's deadline; 1 s keeps an API answer of 503 within 2 s."""

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
        self.lock = cast("Any", _Lock())  # psycopg declares asyncio's, and uses it in `async with` only
        self._grace_ends: float | None = None
        self._committing = False
        self._arrived: deque[Notify] = deque()
        self.add_notify_handler(self._arrived.append)

    @classmethod
    async def open(cls, conninfo: str) -> Connection:
        """A connection to the one address that `conninfo` names. Raises psycopg.OperationalError."""
        gen = cls._connect_gen(conninfo)
        try:
            connection = await _drive_dialogue(gen)
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
            return await _drive(gen, self.pgconn.socket)
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
            await _drive_dialogue(self._cancel_gen())

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
                        await _ready(self.pgconn.socket, Wait.R)
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
                    return _Answer(await _drive(gen, self.pgconn.socket, resumed=True))
                except psycopg.Error:
                    return None

    async def _request_cancel(self) -> None:
        try:
            await _drive_dialogue(self._cancel_gen())
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


class _Lock:
    """asyncio.Lock's part, without a checkpoint when it is free: a ROLLBACK under a cancel must get through.

    Fair. Taking it twice in one task (a statement inside a COPY or stream of the same connection) raises RuntimeError.
    """

    __slots__ = ("_holder", "_queue")

    def __init__(self) -> None:
        self._holder: trio.lowlevel.Task | None = None
        self._queue = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        task = trio.lowlevel.current_task()
        if self._holder is task:
            raise RuntimeError("this task is in the middle of another operation on the same connection")
        if self._holder is None:
            self._holder = task
        else:
            await self._queue.park()  # comes back as the holder

    async def __aexit__(self, *_: object) -> None:
        # Not only by the holder: an abandoned stream is closed by a task of Trio's.
        self._holder = next(iter(self._queue.unpark()), None)


async def connect(
    conninfo: str,
    *,
    timeout_s: float,
    application_name: str,
    prepare_threshold: int | None = 2,
    options: Mapping[str, str] | None = None,
) -> Connection:
    """A connection in autocommit to the first host of `conninfo` that answers and fits `target_session_attrs`.

    Several hosts are tried in turn, and each one's addresses; every one gets its share of the `timeout_s` that are
    left, so that a mute one does not use up the time of those after it. `connect_timeout` of the URL has no effect.
    `options` are server settings for the session, name to value. `prepare_threshold`: after how many uses a statement
    is prepared; None for never, as behind a pooler that cannot keep them.

    Raises DatabaseUnavailable, with what each address said, and SettingsInvalid for a malformed `conninfo`.
    """
    params = parameters(conninfo) | {"application_name": application_name}
    if options:
        params["options"] = f"{params.get('options', '')} {_options(options)}".strip()
    failures: list[str] = []
    hosts = split(params)
    deadline = trio.current_time() + timeout_s
    for i, host in enumerate(hosts):
        host_deadline = _share(deadline, len(hosts) - i)
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
            connection = await _try_address(address, _share(host_deadline, len(addresses) - j), failures)
            if connection is not None:
                connection.prepare_threshold = prepare_threshold
                return connection
    text = "; ".join(failures)
    if password := params.get("password"):
        text = text.replace(password, "…")
    raise DatabaseUnavailable(f"cannot connect to the database: {text}")


async def _try_address(address: Mapping[str, str], deadline: float, failures: list[str]) -> Connection | None:
    with trio.CancelScope(deadline=deadline):
        try:
            return await Connection.open(make_conninfo("", **address))
        except psycopg.Error as e:
            failures.append(first_line(e).removeprefix("connection failed: "))
            return None
    place = address.get("host") or address.get("hostaddr") or "the default host"
    failures.append(f"{place}, port {address.get('port', '5432')}: no answer in time")
    return None


def _share(deadline: float, among: int) -> float:
    now = trio.current_time()
    return now + (deadline - now) / among


def _options(settings: Mapping[str, str]) -> str:
    """As libpq wants them: `-c name=value`, spaces and backslashes escaped."""

    def escape(value: str) -> str:
        return value.replace("\\", "\\\\").replace(" ", "\\ ")

    return " ".join(f"-c {name}={escape(value)}" for name, value in settings.items())


async def _drive(gen: PQGen[_T], fd: int, *, resumed: bool = False) -> _T:
    """`resumed`: `gen` was left at one of its waits, so it is told that nothing happened meanwhile."""
    try:
        want = gen.send(Ready.NONE) if resumed else next(gen)
        while True:
            want = gen.send(await _ready(fd, want))
    except StopIteration as end:
        return cast("_T", end.value)


async def _drive_dialogue(gen: PQGenConn[_T]) -> _T:
    """As `_drive`, for generators whose socket changes on the way: connecting, and asking for a cancel."""
    try:
        fd, want = next(gen)
        while True:
            fd, want = gen.send(await _ready(fd, want))
    except StopIteration as end:
        return cast("_T", end.value)


async def _ready(fd: int, want: Wait) -> Ready:
    """Wait until `fd` is as `want` says. Always a checkpoint."""
    try:
        if want == Wait.R:
            await trio.lowlevel.wait_readable(fd)
            return Ready.R
        if want == Wait.W:
            await trio.lowlevel.wait_writable(fd)
            return Ready.W
        return await _either(fd)
    except (trio.ClosedResourceError, OSError) as e:
        raise psycopg.OperationalError("the connection was closed") from e


async def _either(fd: int) -> Ready:
    """Trio waits for one direction a task; both are wanted by pipelines and by statements larger than the buffers."""
    if not (ready := _poll(fd)):
        try:
            async with trio.open_nursery() as nursery:
                for wait in (trio.lowlevel.wait_readable, trio.lowlevel.wait_writable):
                    nursery.start_soon(_first_of, nursery.cancel_scope, wait, fd)
        except* trio.Cancelled:
            pass  # the checkpoint below raises it again, alone and not wrapped in a group
        ready = _poll(fd)
    await trio.lowlevel.checkpoint()
    return ready


async def _first_of(scope: trio.CancelScope, wait: Callable[[int], Awaitable[None]], fd: int) -> None:
    try:
        await wait(fd)
    except trio.ClosedResourceError:
        pass  # the poll says so
    finally:
        scope.cancel()


def _poll(fd: int) -> Ready:
    poller = select.poll()
    poller.register(fd, select.POLLIN | select.POLLOUT)
    events = next((events for _, events in poller.poll(0)), 0)
    # Errors and hang-ups count as both: the next read or write tells.
    readable, writable = events & ~select.POLLOUT, events & ~select.POLLIN
    if readable and writable:
        return Ready.RW
    if readable:
        return Ready.R
    return Ready.W if writable else Ready.NONE


def is_readable(connection: Connection) -> bool:
    """Whether something waits to be read. On an idle connection that does not LISTEN: that it is about to end."""
    return _poll(connection.pgconn.socket) in {Ready.R, Ready.RW}
