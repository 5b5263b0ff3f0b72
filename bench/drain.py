"""Drain: what one commit of many events costs and takes, until the last delivery is recorded."""

from __future__ import annotations

from typing import Final

import click
import msgspec
import psycopg

from bench import bare
from bench.arrivals import Arrivals
from bench.cpu import Costs, Meter
from bench.figures import Figure, Untrue, medians, publish
from bench.parts import POLL_US, Stage, stage, wait_until
from bench.seeding import customer_ids, duties, emit_at_once, migrated, register
from bench.serving import Serving, serving
from bench.settling import LEAST_PER_S, START_S, settled

HOSTS: Final = 100
CUSTOMERS: Final = customer_ids("c", HOSTS)
BARE_POSTS: Final = 20_000
"""A second's worth: more would show nothing else."""
SUCCESSES: Final = "SELECT coalesce(sum(success), 0) FROM dealix.daily_stats"


class Drained(msgspec.Struct, frozen=True):
    """One run: from the commit of all events to the last record.

    CPU in µs for each delivery, of the bare loop for each POST; `ratio` is of daemon and Postgres to the bare loop.
    """

    per_second: float
    cpu_us: float
    daemon_us: float
    postgres_us: float
    receiver_us: float
    bare_us: float
    bare_per_second: float
    ratio: float


@click.command()
@click.option("--events", default=20_000, show_default=True)
@click.option("--runs", default=5, show_default=True)
def drain(events: int, runs: int) -> None:
    """Drain events with one subscription each, over plain HTTP."""
    row(events, 1, runs, targets=((4000, 6000), (250, 160), (5.5, 3.5)))


@click.command("drain-5")
@click.option("--events", default=20_000, show_default=True)
@click.option("--runs", default=5, show_default=True)
def drain_5(events: int, runs: int) -> None:
    """Drain events with five subscriptions each, over plain HTTP."""
    row(events, 5, runs, targets=((4500, 6500), (250, 160), (5.5, 3.5)))


@click.command("drain-tls")
@click.option("--events", default=20_000, show_default=True)
@click.option("--runs", default=5, show_default=True)
def drain_tls(events: int, runs: int) -> None:
    """Drain events with one subscription each, over TLS on connections that are kept."""
    row(events, 1, runs, tls=True, targets=((2500, 4000),))


def row(events: int, each: int, runs: int, *, tls: bool = False, targets: tuple[tuple[float, float], ...]) -> None:
    """Warm up, measure, publish. `targets`: target and stretch of rate, CPU and ratio, as far as there are any."""
    with stage(HOSTS, tls=tls, poll_us=POLL_US) as on:
        migrated(on)
        register(on, CUSTOMERS, hosts=HOSTS, each=each)
        with serving(on) as daemon:
            arrivals = Arrivals(on)
            once(on, daemon, arrivals, max(events // 5, 100))
            measured = [once(on, daemon, arrivals, events) for _ in range(runs)]
    results = [drained for drained, _ in measured]
    m = medians(results)
    what = f"{events:,} events × {each}{' over TLS' if tls else ''}"
    bounds = [*targets, (None, None), (None, None)]
    each_costs = f"{what}: CPU for a delivery"
    figures = [
        Figure(f"{what}: drain", m.per_second, "deliveries/s", *bounds[0], floor=m.bare_per_second),
        Figure(f"{each_costs}, daemon + Postgres", m.cpu_us, "µs", *bounds[1], at_most=True, floor=m.bare_us),
        Figure(f"{each_costs}, the daemon's part", m.daemon_us, "µs"),
        Figure(f"{each_costs}, Postgres' part", m.postgres_us, "µs"),
        Figure(f"{each_costs}, ratio to the bare sender's loop", m.ratio, "×", *bounds[2], at_most=True),
    ]
    title = f"{what} subscription(s), {HOSTS} endpoint hosts, 1 KB, {runs} runs"
    publish(title, results, figures, others=max(others for _, others in measured))


def once(on: Stage, daemon: Serving, arrivals: Arrivals, events: int) -> tuple[Drained, float]:
    """One run, and the share of the machine that others took meanwhile. Raises Untrue."""
    with on.sql() as db:
        costs, deliveries = _drain(on, db, daemon, arrivals, events)
        urls = [url for (url,) in db.execute("SELECT endpoint_url FROM dealix.subscriptions ORDER BY id")]
    floor = bare.measure(on, urls, min(deliveries, BARE_POSTS))
    arrivals.take()
    each_us = {name: cpu_s / deliveries * 1e6 for name, cpu_s in costs.cpu_s.items()}
    cpu_us = each_us["daemon"] + each_us["postgres"]
    drained = Drained(
        per_second=deliveries / costs.wall_s,
        cpu_us=cpu_us,
        daemon_us=each_us["daemon"],
        postgres_us=each_us["postgres"],
        receiver_us=each_us["receiver"],
        bare_us=floor.cpu_us,
        bare_per_second=floor.per_second,
        ratio=cpu_us / floor.cpu_us,
    )
    return drained, costs.others


def _drain(on: Stage, db: psycopg.Connection, daemon: Serving, arrivals: Arrivals, events: int) -> tuple[Costs, int]:
    """Commit the events, wait for the last record, and check that each delivery arrived and is recorded, once."""
    before = _successes(db)
    db.execute("CHECKPOINT")
    with db.transaction():
        since = emit_at_once(db, events, CUSTOMERS)
        wanted = duties(db, since)
        meter = Meter(daemon=daemon.pid, postgres=on.postgres.pid, receiver=on.receiver.pid)
    limit_s = START_S + len(wanted) / LEAST_PER_S
    wait_until(lambda: arrivals.count() >= len(wanted), limit_s)  # of the receiver: a query each time would be felt
    wait_until(lambda: _successes(db) >= before + len(wanted), START_S, every_s=0.005)
    costs = meter.costs()
    settled(db, arrivals, wanted)
    recorded = _successes(db) - before
    if recorded != len(wanted):
        raise Untrue(f"{recorded} deliveries recorded as delivered instead of {len(wanted)}")
    return costs, len(wanted)


def _successes(db: psycopg.Connection) -> int:
    return int(db.execute(SUCCESSES).fetchall()[0][0])
