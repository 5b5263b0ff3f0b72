"""Cancels and killed backends at random points of operations: nothing is lost, half done, left running or mixed up.

FUZZ_S lets it run longer, FUZZ_SEED repeats a run's choices (though not the scheduling of the machine).
"""

from __future__ import annotations

import os
import random
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, cast

import psycopg
import pytest
import trio
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import TupleRow

from daemon.errors import CommitUnknown, DatabaseUnavailable
from daemon.store.connection import Connection, connect
from tests.support.postgres import fresh_database

WORKERS: Final = 4
OPERATIONS: Final = 1_000
LIMIT_S: Final = 40.0
FUZZ_S: Final = float(os.environ.get("FUZZ_S", "0"))

Verdict = Literal["done", "cancelled", "unknown", "failed", "lost"]


class ExpectedError(Exception):
    """Raised inside blocks to see them roll back."""


@dataclass(slots=True)
class Run:
    """What has happened so far: for each operation how many rows it stands for, and which counts are right."""

    dice: random.Random
    allowed: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    seen: Counter[str] = field(default_factory=Counter[str])
    next_op: int = 0


Operation = Callable[[Connection, random.Random, int, int], Awaitable[int]]
"""Does something as operation number `op` with about `rows` rows, and returns how many with that number it inserted."""


async def echo(conn: Connection, dice: random.Random, op: int, rows: int) -> int:
    text = "x" * dice.choice([1, 100, 200_000])
    cur = await conn.execute("SELECT %s::int, %s::text", (op, text), prepare=dice.choice([None, True, False]))
    assert await cur.fetchall() == [(op, text)]
    return 0


async def copy_out(conn: Connection, dice: random.Random, op: int, rows: int) -> int:
    query = "COPY (SELECT %s, i, repeat('x', 50) FROM generate_series(1, %s) i) TO STDOUT"
    async with conn.cursor().copy(query, (op, rows)) as copy:
        got = [row async for row in copy.rows()]
    assert got == [(str(op), str(i), "x" * 50) for i in range(1, rows + 1)]
    return 0


async def stream(conn: Connection, dice: random.Random, op: int, rows: int) -> int:
    wanted = dice.randint(1, rows)
    rows_of_it = conn.cursor().stream("SELECT %s::int, i FROM generate_series(1, %s) i", (op, rows))
    async with aclosing(cast("AsyncGenerator[TupleRow]", rows_of_it)) as got:
        i = 0
        async for row in got:
            i += 1
            assert row == (op, i)
            if i == wanted:
                break
    return 0


async def failing(conn: Connection, dice: random.Random, op: int, rows: int) -> int:
    with pytest.raises(psycopg.errors.UniqueViolation):
        await conn.execute("INSERT INTO ledger VALUES (%s, 0), (%s, 0)", (op, op))
    return 0


async def insert(conn: Connection, dice: random.Random, op: int, rows: int) -> int:
    cur = await conn.execute("INSERT INTO ledger SELECT %s, generate_series(1, %s)", (op, rows))
    assert cur.rowcount == rows
    return rows


async def copy_in(conn: Connection, dice: random.Random, op: int, rows: int) -> int:
    async with conn.cursor().copy("COPY ledger FROM STDIN") as copy:
        for i in range(rows):
            await copy.write_row((op, i))
            if i % 100 == 99:
                await trio.lowlevel.checkpoint()
        if dice.random() < 0.2:
            raise ExpectedError
    return rows


async def pipeline(conn: Connection, dice: random.Random, op: int, rows: int) -> int:
    async with conn.pipeline():
        for i in range(min(rows, 50)):
            await conn.execute("INSERT INTO ledger VALUES (%s, %s)", (op, i))
        cur = await conn.execute("SELECT %s::int, repeat('y', 100000)", (op,))
        if dice.random() < 0.2:
            await conn.execute("SELECT 1 / %s", (0,))
        if dice.random() < 0.5:
            assert await cur.fetchone() == (op, "y" * 100_000)
    return min(rows, 50)


async def transaction(conn: Connection, dice: random.Random, op: int, rows: int) -> int:
    async with conn.transaction():
        for i in range(min(rows, 5)):
            await conn.execute("INSERT INTO ledger VALUES (%s, %s)", (op, i))
        if dice.random() < 0.3:
            raise ExpectedError
    return min(rows, 5)


async def nested(conn: Connection, dice: random.Random, op: int, rows: int) -> int:
    async with conn.transaction():
        await conn.execute("INSERT INTO ledger VALUES (%s, 0)", (op,))
        try:
            async with conn.transaction():
                await conn.execute("INSERT INTO ledger VALUES (%s, 1)", (op,))
                async with conn.transaction():
                    await conn.execute("INSERT INTO ledger VALUES (%s, 2)", (op,))
                if rows % 2:
                    raise ExpectedError  # noqa: TRY301 to leave the savepoint by it
            inserted = 3
        except ExpectedError:
            await conn.execute("INSERT INTO ledger VALUES (%s, 3)", (op,))
            inserted = 2
    return inserted


async def impatient_savepoint(conn: Connection, dice: random.Random, op: int, rows: int) -> int:
    inserted = 1
    async with conn.transaction():
        await conn.execute("INSERT INTO ledger VALUES (%s, 0)", (op,))
        with trio.move_on_after(dice.random() * 0.003):
            async with conn.transaction():
                await conn.execute("INSERT INTO ledger VALUES (%s, 1)", (op,))
                await conn.execute("SELECT pg_sleep(0.001)")
            inserted += 1
    return inserted


async def copy_in_transaction(conn: Connection, dice: random.Random, op: int, rows: int) -> int:
    async with conn.transaction():
        await conn.execute("INSERT INTO ledger VALUES (%s, -1)", (op,))
        return 1 + await copy_in(conn, dice, op, rows)


async def pipeline_in_transaction(conn: Connection, dice: random.Random, op: int, rows: int) -> int:
    async with conn.transaction():
        return await pipeline(conn, dice, op, rows)


async def many(conn: Connection, dice: random.Random, op: int, rows: int) -> int:
    few = min(rows, 50)
    async with conn.transaction():
        await conn.cursor().executemany("INSERT INTO ledger VALUES (%s, %s)", [(op, i) for i in range(few)])
    return few


READING: Final[list[Operation]] = [echo, copy_out, stream, failing]
LOOSE: Final[list[Operation]] = [insert, copy_in, pipeline]
"""All or nothing, but after a cancel that cost the connection nobody knows which."""
FIRM: Final[list[Operation]] = [
    transaction, nested, impatient_savepoint, copy_in_transaction, pipeline_in_transaction, many,
]  # fmt: skip
"""One explicit transaction each: cancelled means not done, whatever became of the connection."""


async def cancel_after_ticks(scope: trio.CancelScope, ticks: int) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def attempt(conn: Connection, dice: random.Random, work: Callable[[], Awaitable[int]]) -> tuple[Verdict, int]:
    """Do the work with a cancel somewhere, by time or by the scheduler's ticks, or with none."""
    inserted = 0
    verdict: Verdict = "cancelled"
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            match dice.randrange(5):
                case 0:
                    pass
                case 1 | 2:
                    scope.deadline = trio.current_time() + dice.random() ** 3 * 0.01
                case _:
                    nursery.start_soon(cancel_after_ticks, scope, dice.randrange(dice.choice([3, 12, 60])))
            try:
                inserted = await work()
                verdict = "done"
            except CommitUnknown:
                verdict = "unknown"
            except (ExpectedError, psycopg.errors.DivisionByZero):
                verdict = "failed"
            except psycopg.OperationalError:
                if not conn.closed:
                    raise
                verdict = "lost"
        nursery.cancel_scope.cancel()
    return verdict, inserted


def rows_allowed(verdict: Verdict, inserted: int, act: Operation, rows: int, *, closed: bool) -> set[int]:
    """How many rows of the operation may be in the table."""
    if verdict == "done":
        return {inserted}
    if verdict == "unknown" or (verdict in {"cancelled", "lost"} and act in LOOSE and closed):
        return {0, rows, min(rows, 50)}
    return {0}


async def check(conn: Connection, op: int) -> None:
    """That a connection which is open is idle and answers what it is asked."""
    try:
        with trio.fail_after(5):
            assert conn.info.transaction_status == TransactionStatus.IDLE
            assert conn.info.pipeline_status == PipelineStatus.OFF
            cur = await conn.execute("SELECT %s::int", (op,))
            assert await cur.fetchall() == [(op,)]
    except psycopg.OperationalError:
        assert conn.closed


async def session(url: str, dice: random.Random) -> Connection:
    while True:
        with suppress(DatabaseUnavailable):  # killed before it was made
            return await connect(url, timeout_s=10, application_name="fuzz", prepare_threshold=dice.choice([0, 1, 2]))


async def worker(url: str, run: Run, ends_at: float) -> None:
    conn = await session(url, run.dice)
    try:
        while run.next_op < OPERATIONS or trio.current_time() < ends_at:
            run.next_op += 1
            op, rows = run.next_op, run.dice.choice([1, 2, 5, 50, 3_000])
            act = run.dice.choice(READING + LOOSE + FIRM)
            verdict, inserted = await attempt(conn, run.dice, partial(act, conn, run.dice, op, rows))
            run.seen[verdict] += 1
            run.allowed[op] = rows_allowed(verdict, inserted, act, rows, closed=conn.closed)
            run.seen["undecided"] += len(run.allowed[op]) > 1
            if not conn.closed:
                await check(conn, op)
            if conn.closed:
                run.seen["reconnected"] += 1
                conn = await session(url, run.dice)
    finally:
        await conn.close()


async def killer(oracle: Connection) -> None:
    while True:
        await trio.sleep(0.05)
        await oracle.execute(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE application_name = 'fuzz' ORDER BY random() LIMIT 1"""
        )


@pytest.mark.fuzz
@pytest.mark.parametrize(
    "server", ["embedded_server", pytest.param("debian_postgres", marks=pytest.mark.external_postgres)]
)
async def test_random_cancels_lose_and_leave_nothing(server: str, request: pytest.FixtureRequest) -> None:
    url = fresh_database(request.getfixturevalue(server))
    seed = int(os.environ.get("FUZZ_SEED", secrets.randbits(32)))
    print(f"FUZZ_SEED={seed}")  # noqa: T201 pytest shows it with a failure
    run = Run(random.Random(seed))
    with trio.fail_after(LIMIT_S + FUZZ_S):
        async with await connect(url, timeout_s=10, application_name="oracle") as oracle:
            await oracle.execute("CREATE UNLOGGED TABLE ledger (op int, i int, UNIQUE (op, i))")
            async with trio.open_nursery() as killing:
                killing.start_soon(killer, oracle)
                async with trio.open_nursery() as nursery:
                    for _ in range(WORKERS):
                        nursery.start_soon(worker, url, run, trio.current_time() + FUZZ_S)
                killing.cancel_scope.cancel()
            with trio.fail_after(5):
                alive = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'fuzz'"
                while await (await oracle.execute(alive)).fetchone():
                    await trio.sleep(0.02)
            cur = await oracle.execute("SELECT op, count(*)::int FROM ledger GROUP BY op")
            found = dict(await cur.fetchall())
    wrong = {op: (found.get(op, 0), counts) for op, counts in run.allowed.items() if found.get(op, 0) not in counts}
    print(dict(run.seen))  # noqa: T201
    assert wrong == {}
    # Were there enough of each, or did this test look at nothing?
    assert run.next_op >= OPERATIONS
    assert min(run.seen["done"], run.seen["cancelled"]) > run.next_op / 8
    assert run.seen["lost"] + run.seen["unknown"] > 0
    assert run.seen["undecided"] < run.next_op / 5
