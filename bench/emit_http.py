"""Emit over HTTP: one event a request, and 500; against the same events by as many SQL clients."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Final

import click
import msgspec

from bench import http_clients, pgbench
from bench.arrivals import Arrivals
from bench.cpu import Meter
from bench.emits import CUSTOMERS, EMIT
from bench.figures import Figure, Untrue, medians, publish
from bench.http_clients import Plan
from bench.parts import POLL_US, Stage, stage
from bench.pgbench import Load
from bench.seeding import DATA, customer_ids, duties, migrated, register
from bench.serving import Serving, serving
from bench.settling import settled

BASE: Final = "/api/v1/ecosystem/events/emit"
CLIENTS: Final = 16
BATCH: Final = 500
BATCH_CLIENTS: Final = 4
NOBODY: Final = customer_ids("n", len(CUSTOMERS))
"""Customers without a subscription: their events are emitted, and no delivery comes of them."""
EMIT_BATCH: Final = f"""
SELECT count(*) FROM dealix.emit_batch(
    ARRAY(SELECT 'c' || i % {len(CUSTOMERS)} FROM generate_series(1, {BATCH}) AS i),
    array_fill('deal.won'::text, ARRAY[{BATCH}]), array_fill(:data::text, ARRAY[{BATCH}]),
    array_fill(NULL::text, ARRAY[{BATCH}]));
"""


class Emitted(msgspec.Struct, frozen=True):
    """One run: events a second, one a request and `BATCH` a request, and CPU of the daemon in µs for an event.

    `quiet`: for customers without a subscription, so that nothing is delivered beside; the CPU is of these, `client_us`
    that of the clients that send single events. `sql`: the same by SQL, with deliveries.
    """

    single_per_s: float
    batch_per_s: float
    quiet_single_per_s: float
    quiet_batch_per_s: float
    sql_single_per_s: float
    sql_batch_per_s: float
    single_us: float
    batch_us: float
    client_us: float


@dataclass(frozen=True)
class Bench:
    """A stage with a daemon and the key to its API."""

    on: Stage
    daemon: Serving
    arrivals: Arrivals
    key: str


@dataclass(frozen=True)
class Posted:
    """Events a second, CPU of the daemon in µs for each, deliveries included, and of the client."""

    per_second: float
    daemon_us: float
    client_us: float


@click.command("emit-http")
@click.option("--events", default=4000, show_default=True, help="One a request; five times as many in batches.")
@click.option("--runs", default=5, show_default=True)
def emit_http(events: int, runs: int) -> None:
    """Emit through the API, singly and in batches of 500, while the daemon delivers and with nothing to deliver."""
    results: list[Emitted] = []
    others = 0.0
    with stage(len(CUSTOMERS), poll_us=POLL_US) as on:
        key = migrated(on)
        register(on, CUSTOMERS)
        with serving(on) as daemon:
            bench = Bench(on, daemon, Arrivals(on), key)
            _once(bench, events // 4)
            for _ in range(runs):
                meter = Meter(daemon=daemon.pid, postgres=on.postgres.pid, receiver=on.receiver.pid)
                results.append(_once(bench, events))
                others = max(others, meter.costs().others)
    m = medians(results)
    what = f"{CLIENTS} clients singly, {BATCH_CLIENTS} in batches of {BATCH}, 1 KB, {runs} runs"
    figures = [
        Figure("emit through HTTP, single", m.single_per_s, "events/s", 1000, floor=m.sql_single_per_s),
        Figure(f"emit through HTTP, batch of {BATCH}", m.batch_per_s, "events/s", 15_000, floor=m.sql_batch_per_s),
        Figure("the same with nothing to deliver, single", m.quiet_single_per_s, "events/s"),
        Figure(f"the same with nothing to deliver, batch of {BATCH}", m.quiet_batch_per_s, "events/s"),
    ]
    publish(what, results, figures, others=others)


def _once(bench: Bench, events: int) -> Emitted:
    many = max(events * 5 // BATCH, 1)
    single = _posted(bench, CUSTOMERS, events, 1)
    batch = _posted(bench, CUSTOMERS, many, BATCH)
    quiet_single = _posted(bench, NOBODY, events, 1)
    quiet_batch = _posted(bench, NOBODY, many, BATCH)
    return Emitted(
        single_per_s=single.per_second,
        batch_per_s=batch.per_second,
        quiet_single_per_s=quiet_single.per_second,
        quiet_batch_per_s=quiet_batch.per_second,
        sql_single_per_s=_by_sql(bench, Load(EMIT, CLIENTS, events), 1),
        sql_batch_per_s=_by_sql(bench, Load(EMIT_BATCH, BATCH_CLIENTS, many), BATCH),
        single_us=quiet_single.daemon_us,
        batch_us=quiet_batch.daemon_us,
        client_us=quiet_single.client_us,
    )


def _posted(bench: Bench, customers: Sequence[str], requests: int, batch: int) -> Posted:
    emits = [{"customer_id": customer, "event_type": "deal.won", "payload": json.loads(DATA)} for customer in customers]
    plan = Plan(
        port=bench.daemon.port,
        path=BASE if batch == 1 else f"{BASE}/batch",
        key=bench.key,
        bodies=[json.dumps(e) for e in emits] if batch == 1 else [json.dumps({"events": list(_turns(emits, batch))})],
        requests=requests,
        clients=CLIENTS if batch == 1 else BATCH_CLIENTS,
        status=202,
    )
    with _checked(bench, requests * batch, matched=1 if customers is CUSTOMERS else 0):
        meter = Meter(daemon=bench.daemon.pid)
        done = http_clients.run(plan)
        daemon_us = meter.costs().cpu_s["daemon"] / (done.requests * batch) * 1e6
    return Posted(done.requests * batch / done.seconds, daemon_us, done.client_us / batch)


def _by_sql(bench: Bench, load: Load, batch: int) -> float:
    transactions = -(-load.transactions // load.clients) * load.clients
    with _checked(bench, transactions * batch, matched=1):
        done = pgbench.run(bench.on, load, data=DATA)
    return done.per_second * batch


@contextmanager
def _checked(bench: Bench, events: int, *, matched: int) -> Generator[None]:
    """What goes on inside emits so many events. Waits for their deliveries; raises Untrue unless all is right."""
    with bench.on.sql() as db:
        db.execute("CHECKPOINT")
        (since,) = db.execute("SELECT clock_timestamp()").fetchall()[0]
        yield
        emitted = int(
            db.execute("SELECT count(*) FROM dealix.events WHERE created_at >= %s", (since,)).fetchall()[0][0]
        )
        wanted = duties(db, since)
        if emitted != events or len(wanted) != events * matched:
            raise Untrue(f"{emitted} events instead of {events}, with {len(wanted)} deliveries")
        settled(db, bench.arrivals, wanted)


def _turns(emits: Sequence[object], count: int) -> Iterator[object]:
    return islice(cycle(emits), count)
