"""Hang: what healthy endpoints see of it that a tenth of all never answers and another tenth answers 500."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import click
import msgspec

from bench.arrivals import SETTLE_S, Arrival, Arrivals, check_once
from bench.cpu import Meter
from bench.emitting import Pace, emitting, latencies_ms, percentile
from bench.figures import Figure, Untrue, medians, publish
from bench.parts import Stage, stage, wait_until
from bench.seeding import customer_ids, duties, emit_at_once, migrated, register
from bench.serving import serving

HEALTHY: Final = customer_ids("c", 80)
BAD: Final = 10
"""Of each kind: with the healthy ones a hundred endpoints, each on an address of its own."""
EMITTERS: Final = 8
ARRIVE_S: Final = 60.0


class Run(msgspec.Struct, frozen=True):
    """Of the healthy endpoints, beside the bad ones and without them.

    Deliveries a second in a drain; p50 and p99 of emit call → arrival in milliseconds at a steady load.
    """

    per_second: float
    p50_ms: float
    p99_ms: float
    without_per_second: float
    without_p50_ms: float
    without_p99_ms: float

    @property
    def throughput(self) -> float:
        """Beside the bad ones to without them."""
        return self.per_second / self.without_per_second

    @property
    def p99(self) -> float:
        """Beside the bad ones to without them."""
        return self.p99_ms / self.without_p99_ms


@click.command("hang")
@click.option("--events", default=20_000, show_default=True, help="To the healthy endpoints, drained in each run.")
@click.option("--seconds", default=15.0, show_default=True, help="Of the steady load: longer than a time-out of 10 s.")
@click.option(
    "--per-second", default=400, show_default=True, help="Of it to the healthy; the others get a quarter more."
)
@click.option("--runs", default=5, show_default=True)
def hang(events: int, seconds: float, per_second: int, runs: int) -> None:
    """10 % of the endpoints hang, 10 % answer 500: throughput and latency of the healthy ones, beside and without."""
    with stage(len(HEALTHY) + 2 * BAD) as on:
        migrated(on)
        register(on, HEALTHY, hosts=len(HEALTHY))
        meter = Meter(postgres=on.postgres.pid, receiver=on.receiver.pid)
        load = Pace(per_second, seconds, EMITTERS)
        results = [once(on, number, events, load) for number in range(runs)]
        others = meter.costs().others
    middle = medians(results)
    what = "10 % of endpoints hang, 10 % answer 500: healthy ones'"
    publish(
        "the healthy endpoints: deliveries a second in a drain; emit call → arrival at a steady load",
        results,
        [
            Figure(f"{what} p99 against without", middle.p99, "×", 1.2, 1.05, at_most=True),
            Figure(f"{what} throughput against without", middle.throughput, "×", 0.9, 0.97),
            Figure(f"{what} p99", middle.p99_ms, "ms", floor=middle.without_p99_ms),
            Figure(f"{what} throughput", middle.per_second, "/s", floor=middle.without_per_second),
        ],
        others=others,
    )


def once(on: Stage, number: int, events: int, load: Pace) -> Run:
    """Without the bad endpoints, then with new ones, whose breakers are closed and whom no one knows."""
    without = (drain(on, HEALTHY, events), *steady(on, HEALTHY, load))
    _forget(on)
    beside = (drain(on, _mixed(on, f"{number}a"), events), *steady(on, _mixed(on, f"{number}b"), load))
    _forget(on)
    return Run(*beside, *without)


def _mixed(on: Stage, run: str) -> list[str]:
    """The healthy customers, and after each four of them a new bad one."""
    hanging, failing = customer_ids(f"hang{run}-", BAD), customer_ids(f"fail{run}-", BAD)
    bad = [name for pair in zip(hanging, failing, strict=True) for name in pair]
    register(on, bad, hosts=len(bad), first_host=len(HEALTHY) + 1)
    return [name for n, one in enumerate(bad) for name in (*HEALTHY[4 * n : 4 * n + 4], one)]


def drain(on: Stage, customers: Sequence[str], events: int) -> float:
    """So many events to the healthy ones, and their share to the others: deliveries a second to the healthy ones."""
    arrivals = Arrivals(on)
    arrivals.take()
    with on.sql() as db:
        since = emit_at_once(db, events * len(customers) // len(HEALTHY), customers)
        owed = [duty for duty in duties(db, since) if is_healthy(duty[1])]
        with serving(on):
            arrived = _all_healthy(arrivals, len(owed))
    healthy = [a for a in arrived if is_healthy(a.path)]
    check_once(healthy, owed)
    _check_bad(arrived, customers)
    at_s = [a.at_ns / 1e9 for a in healthy]
    tenth = len(at_s) // 10
    return (len(at_s) - 2 * tenth) / (at_s[-tenth] - at_s[tenth])


def steady(on: Stage, customers: Sequence[str], load: Pace) -> tuple[float, float]:
    """A steady load: p50 and p99 of call → arrival at the healthy ones, in milliseconds."""
    arrivals = Arrivals(on)
    arrivals.take()
    load = replace(load, per_second=load.per_second * len(customers) / len(HEALTHY))
    with serving(on):
        with emitting(on, load, customers) as running:
            emits = [e for e in running.wait() if is_healthy(e.duty[1])]
        arrived = _all_healthy(arrivals, len(emits))
    healthy = [a for a in arrived if is_healthy(a.path)]
    check_once(healthy, [e.duty for e in emits])
    _check_bad(arrived, customers)
    took_ms = latencies_ms(emits, healthy)
    return percentile(took_ms, 0.5), percentile(took_ms, 0.99)


def is_healthy(path: str) -> bool:
    """Whether it is a healthy endpoint's."""
    return path.startswith("/c")


def _all_healthy(arrivals: Arrivals, count: int) -> list[Arrival]:
    """What arrived, as soon as so much did at the healthy ones, and a little longer."""
    arrived: list[Arrival] = []

    def is_complete() -> bool:
        arrived.extend(arrivals.take())
        return sum(is_healthy(a.path) for a in arrived) >= count

    wait_until(is_complete, ARRIVE_S, every_s=0.25)
    time.sleep(SETTLE_S)
    return arrived + arrivals.take()


def _check_bad(arrived: Sequence[Arrival], customers: Sequence[str]) -> None:
    """Each bad endpoint was there and had requests: else the healthy ones had nothing beside them."""
    silent = {f"/{c}" for c in customers} - {a.path for a in arrived}
    if silent:
        raise Untrue(f"{len(silent)} endpoints had no request at all")


def _forget(on: Stage) -> None:
    """Everything about the bad ones, so that the next run begins as the first one did."""
    with on.sql() as db:
        db.execute("TRUNCATE dealix.outbox, dealix.deliveries, dealix.roster")
        db.execute("DELETE FROM dealix.subscriptions WHERE customer_id !~ '^c'")
