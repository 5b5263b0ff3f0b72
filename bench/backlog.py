"""Backlog: whether a million waiting deliveries, and another million held for one dead endpoint, slow the others."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, cast

import click
import msgspec
import psycopg
import trio

from bench.arrivals import SETTLE_S, Arrival, Arrivals, check_once
from bench.cpu import Meter
from bench.figures import Figure, Untrue, medians, publish
from bench.parts import POLL_US, START_S, Stage, stage
from bench.seeding import customer_ids, duties, left, migrated, register
from bench.serving import serving, stretch
from daemon.actors.delivery import MAILBOX
from daemon.actors.roster import LEASE_S
from daemon.ids import CustomerId, SubscriptionId
from daemon.store import outbox, queue
from daemon.store.claims import Claimed, Room
from daemon.store.connection import Connection, connect
from daemon.store.sessions import HOT
from daemon.store.shards import SHARDS, shard_of

CUSTOMERS: Final = customer_ids("c", 100)
DEAD: Final = CustomerId("hang")
DATA_BYTES: Final = 1000
ARRIVE_S: Final = 60.0
SMALL: Final = 10_000
EXPLAINED: Final = 5

# Events as emit writes them, but a million in one statement. Ids begin with the millisecond, as the look-up needs.
_EVENTS: Final = """
    INSERT INTO dealix.events (id, customer_id, type, data, created_at, matched)
    SELECT 'evt_' || lpad(to_hex(floor(extract(epoch FROM now()) * 1000)::bigint), 12, '0') || lpad(to_hex(i), 12, '0'),
           (%(customers)s::text[])[i %% cardinality(%(customers)s::text[]) + 1], 'deal.won', %(data)s, now(), 1
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i
"""
# Their deliveries: due, as after an outage, or for the dead one held, as behind an open breaker.
_DELIVERIES: Final = """
    INSERT INTO dealix.deliveries
        (event_id, event_day, event_type, subscription_id, shard, attempt, steps, claimed, due)
    SELECT e.id, (now() AT TIME ZONE 'UTC')::date, e.type, s.id, dealix.shard_of(e.customer_id), 0, 0, false,
           CASE WHEN s.customer_id <> %(dead)s THEN now() END
    FROM dealix.events e JOIN dealix.subscriptions s USING (customer_id)
    WHERE e.created_at >= %(since)s
    ORDER BY e.id
"""
_OUTBOX: Final = """
    INSERT INTO dealix.outbox (shard, event_id, event_day, event_type, data_bytes, subscription_ids)
    SELECT dealix.shard_of(e.customer_id), e.id, (now() AT TIME ZONE 'UTC')::date, e.type, length(e.data), ARRAY[s.id]
    FROM dealix.events e JOIN dealix.subscriptions s USING (customer_id)
    WHERE e.created_at >= %(since)s
    ORDER BY e.id
"""
_DIE: Final = """
    UPDATE dealix.subscription_health
    SET consecutive_failures = 10, circuit = 'open', cooldown_s = 900, reopen_at = now() + interval '1 day'
    WHERE subscription_id = %s
"""
_ROSTER: Final = "INSERT INTO dealix.roster (subscription_id, shard) VALUES (%s, %s)"


class Run(msgspec.Struct, frozen=True):
    """Deliveries a second with much waiting and with 10,000; CPU for each; the claiming statement's time on the server.

    `find_ms` is its look for what is due, `claim_ms` the whole with everything that it claims and holds, `claim_rows`
    how many these were.
    """

    per_second: float
    small_per_second: float
    cpu_us: float
    small_cpu_us: float
    find_ms: float
    claim_ms: float
    claim_rows: float


@click.command("backlog")
@click.option(
    "--deliveries", default=1_000_000, show_default=True, help="That wait, and as many held for a dead endpoint."
)
@click.option("--window", default=20_000, show_default=True, help="Deliveries measured in each run.")
@click.option("--runs", default=5, show_default=True)
@click.option("--before-fan-out", is_flag=True, help="They wait in the outbox, as emitted, instead of being due.")
def backlog(deliveries: int, window: int, runs: int, *, before_fan_out: bool) -> None:
    """Throughput with a million deliveries waiting and a million held, against 10,000 waiting; the due query's time."""
    with stage(len(CUSTOMERS) + 1, poll_us=POLL_US) as on:
        migrated(on)
        register(on, CUSTOMERS, hosts=len(CUSTOMERS))
        (dead,) = register(on, [DEAD], hosts=1, first_host=len(CUSTOMERS) + 1)
        meter = Meter(postgres=on.postgres.pid, receiver=on.receiver.pid)
        results = Backlog(on, dead, before_fan_out=before_fan_out).measure(deliveries, window, runs)
        others = meter.costs().others
    middle = medians(results)
    what = f"backlog of {deliveries:,}, and as many held for one dead endpoint"
    publish(
        f"{what}, {'before fan-out' if before_fan_out else 'due'}; small: {SMALL:,} waiting, nothing held",
        results,
        [
            Figure(f"{what}: throughput against {SMALL:,}", middle.per_second / middle.small_per_second, "×", 0.85),
            Figure(f"{what}: deliveries", middle.per_second, "/s", floor=middle.small_per_second),
            Figure(f"{what}: due query", middle.find_ms, "ms", 10, at_most=True),
            Figure(f"{what}: due query with its {middle.claim_rows:,.0f} claims", middle.claim_ms, "ms"),
        ],
        others=others,
    )


class Backlog:
    """One database that fills."""

    def __init__(self, on: Stage, dead: SubscriptionId, *, before_fan_out: bool) -> None:
        self._on = on
        self._dead = dead
        self._waiting = _OUTBOX if before_fan_out else _DELIVERIES
        self._claim = outbox.fan_out if before_fan_out else queue.claim_due
        self._next = 0

    def measure(self, deliveries: int, window: int, runs: int) -> list[Run]:
        """The small backlogs first, each drained whole; then windows of the large one."""
        small = [self._drain_small() for _ in range(runs + 1)][1:]
        with self._on.sql() as db:
            db.execute(_DIE, (self._dead,))
            db.execute(_ROSTER, (self._dead, shard_of(DEAD)))
            self._seed(db, deliveries, [DEAD], _DELIVERIES)
            since = self._seed(db, deliveries, CUSTOMERS, self._waiting)
            db.execute("VACUUM ANALYZE")
            plans = [trio.run(explain, self._on.url, self._claim) for _ in range(EXPLAINED)]
            arrived: list[Arrival] = []
            large = [self._drain_window(window, arrived) for _ in range(runs)]
            self._check(db, since, deliveries, arrived)
        timed = medians(plans)
        return [
            Run(*(b[0], s[0], b[1], s[1], timed.find_ms, timed.whole_ms, timed.rows))
            for b, s in zip(large, small, strict=True)
        ]

    def _seed(self, db: psycopg.Connection, events: int, customers: Sequence[str], waiting: str) -> datetime:
        (since,) = db.execute("SELECT clock_timestamp()").fetchall()[0]
        data = json.dumps({"text": "x" * (DATA_BYTES if customers is CUSTOMERS else 10)})
        bounds = {"first": self._next, "last": self._next + events - 1}
        self._next += events
        with db.transaction():
            db.execute(_EVENTS, {"customers": list(customers), "data": data} | bounds)
            db.execute(waiting.encode(), {"since": since, "dead": DEAD} if waiting is _DELIVERIES else {"since": since})
        return since

    def _drain_small(self) -> tuple[float, float]:
        """Deliveries a second, CPU for each."""
        arrivals = Arrivals(self._on)
        arrivals.take()
        with self._on.sql() as db:
            since = self._seed(db, SMALL, CUSTOMERS, self._waiting)
            with serving(self._on) as daemon:
                measured = stretch(self._on, [daemon], arrivals, (SMALL // 10, SMALL * 9 // 10))
                arrivals.wait_for(SMALL, ARRIVE_S)
                time.sleep(SETTLE_S)
            check_once(arrivals.take(), duties(db, since))
        return measured.per_second, measured.cpu_us

    def _drain_window(self, window: int, arrived: list[Arrival]) -> tuple[float, float]:
        """The same for a part of the large backlog, from the first tenth of it on; what arrived is added to."""
        arrivals = Arrivals(self._on)
        arrivals.take()
        with serving(self._on) as daemon:
            measured = stretch(self._on, [daemon], arrivals, (window // 10, window * 11 // 10))
        arrived += arrivals.take()
        return measured.per_second, measured.cpu_us

    def _check(self, db: psycopg.Connection, since: datetime, deliveries: int, arrived: Sequence[Arrival]) -> None:
        """What arrived is of the large backlog and came once; the rest still waits; nothing of the held ones went."""
        owed = {duty for duty in duties(db, since) if duty[1] != f"/{DEAD}"}
        check_once(arrived, owed & {a.duty for a in arrived})
        waiting = left(db)
        if waiting + len(arrived) != 2 * deliveries:
            raise Untrue(f"{len(arrived)} arrived and {waiting} wait: that is not {2 * deliveries}")


class Plan(msgspec.Struct, frozen=True):
    """Milliseconds on the server: the look for rows, the whole statement; and how many rows it took."""

    find_ms: float
    whole_ms: float
    rows: float


class _Explained(Exception):
    """Carries the plan past the code that expects the statement's own rows."""


async def explain(url: str, claim: Callable[[Connection, range, Room], Awaitable[Claimed]]) -> Plan:
    """EXPLAIN ANALYZE of the statement that `claim` runs, as a daemon that has nothing in memory would run it."""
    room = Room({}, MAILBOX, LEASE_S)
    async with await connect(url, timeout_s=START_S, application_name="bench", options=HOT) as conn:
        try:
            async with conn.transaction():
                await claim(cast("Connection", cast("object", _Explaining(conn))), range(SHARDS), room)
        except _Explained as e:
            plan: dict[str, Any] = e.args[0]
        else:
            raise Untrue("the statement was run, not explained")
    found = next(node for node in _nodes(plan["Plan"]) if node.get("Subplan Name") in {"CTE ripe", "CTE picked"})
    rows = found["Actual Rows"] * found["Actual Loops"]
    return Plan(found["Actual Total Time"], plan["Execution Time"], rows)


class _Explaining:
    """In a connection's place: explains instead of running; the surrounding transaction is rolled back."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    async def execute(self, statement: str, parameters: dict[str, Any]) -> None:
        """Raises _Explained with the plan."""
        text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
        cursor = await self._conn.execute(text.encode(), parameters)
        raise _Explained((await cursor.fetchall())[0][0][0])


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]
