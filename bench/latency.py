"""Latency: from an emitter's call of `dealix.emit` to the arrival of the request at the endpoint."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import click
import msgspec

from bench.arrivals import SETTLE_S, Arrivals, check_once
from bench.cpu import Meter
from bench.emitting import Pace, emitting, latencies_ms, percentile
from bench.figures import Figure, medians, publish
from bench.parts import Stage, stage
from bench.seeding import customer_ids, migrated, register
from bench.serving import serving

CUSTOMERS: Final = customer_ids("c", 100)
WARM_UP: Final = Pace(200, 3, 4)
ARRIVE_S: Final = 30.0


class Run(msgspec.Struct, frozen=True):
    """Milliseconds at 50, 200 and 1,500 events a second.

    The floor: an emit without a wake-up, then a bare POST on an open connection by the emitter itself, no daemon; busy
    is the share of the machine, 0–1, that it takes at 1,500 a second.
    """

    p50_at_50: float
    p99_at_50: float
    p50_at_200: float
    p99_at_200: float
    p50_at_1500: float
    p99_at_1500: float
    floor_p50_at_50: float
    floor_p99_at_50: float
    floor_p50_at_200: float
    floor_p99_at_200: float
    floor_p50_at_1500: float
    floor_p99_at_1500: float
    floor_busy: float


@click.command("latency")
@click.option("--seconds", default=6.0, show_default=True, help="Length of each load.")
@click.option("--runs", default=5, show_default=True)
def latency(seconds: float, runs: int) -> None:
    """Emit call to arrival, at 50/s by 1 emitter, 200/s by 4 and 1,500/s by 16."""
    with stage(len(CUSTOMERS)) as on:
        migrated(on)
        register(on, CUSTOMERS)
        meter = Meter(postgres=on.postgres.pid, receiver=on.receiver.pid)
        results = [once(on, seconds) for _ in range(runs)]
        others = meter.costs().others
    middle = medians(results)
    publish(
        "milliseconds from the call of emit to the arrival at the endpoint; 1 KB, 100 endpoints",
        results,
        [
            _figure("p50 at 50/s, 1 emitter", middle.p50_at_50, middle.floor_p50_at_50, (5, 3.5)),
            _figure("p99 at 50/s, 1 emitter", middle.p99_at_50, middle.floor_p99_at_50, (9, 6)),
            _figure("p50 at 200/s, 4 emitters", middle.p50_at_200, middle.floor_p50_at_200, None),
            _figure("p99 at 200/s, 4 emitters", middle.p99_at_200, middle.floor_p99_at_200, (12, 8)),
            _figure("p50 at 1,500/s, 16 emitters", middle.p50_at_1500, middle.floor_p50_at_1500, None),
            _figure("p99 at 1,500/s, 16 emitters", middle.p99_at_1500, middle.floor_p99_at_1500, (40, 25)),
            Figure("the machine's share that its floor takes, 1,500/s by 16 emitters", middle.floor_busy * 100, "%"),
        ],
        others=others,
    )


def _figure(name: str, value: float, floor: float, bounds: tuple[float, float] | None) -> Figure:
    target, stretch = bounds or (None, None)
    name = f"emit call → arrival, {name}"
    return Figure(name, value, "ms", target=target, stretch=stretch, at_most=True, floor=floor)


def once(on: Stage, seconds: float) -> Run:
    """The floor at each load, then a daemon, and the same loads again."""
    loads = (Pace(50, seconds, 1), Pace(200, seconds, 4), Pace(1500, seconds, 16))
    arrivals = Arrivals(on)
    arrivals.take()
    floors = [at(on, arrivals, load, floor=True) for load in loads]
    with on.sql() as db:
        db.execute("TRUNCATE dealix.outbox")  # what the floor's emitters sent themselves
    with serving(on):
        at(on, arrivals, WARM_UP)
        measured = [at(on, arrivals, load) for load in loads]
    numbers = [ms for one in (*measured, *floors) for ms in (one.p50_ms, one.p99_ms)] + [floors[-1].busy]
    return Run(*numbers)


class Took(NamedTuple):
    """Emit call → arrival in milliseconds, and the machine's share, 0–1, that was busy while emits were made."""

    p50_ms: float
    p99_ms: float
    busy: float


def at(on: Stage, arrivals: Arrivals, load: Pace, *, floor: bool = False) -> Took:
    """One load from its first emit to its last arrival."""
    with emitting(on, load, CUSTOMERS, post=floor) as running:
        time.sleep(max(running.start_ns - time.monotonic_ns(), 0) / 1e9)
        meter = Meter()
        emits = running.wait()
        busy = meter.costs().busy
        arrivals.wait_for(len(emits), ARRIVE_S)
    time.sleep(SETTLE_S)
    arrived = arrivals.take()
    check_once(arrived, [e.duty for e in emits])
    took_ms = latencies_ms(emits, arrived)
    return Took(percentile(took_ms, 0.5), percentile(took_ms, 0.99), busy)
