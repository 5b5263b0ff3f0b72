"""Memory: the daemon's resident set idle, flat out, and over an hour of a quiet load."""

from __future__ import annotations

import time
from typing import Final

import click
import msgspec

from bench.arrivals import Arrivals
from bench.cpu import Meter
from bench.emitting import Pace, emitting
from bench.figures import Figure, publish
from bench.parts import Stage, stage
from bench.seeding import customer_ids, duties, emit_at_once, migrated, register
from bench.serving import Serving, serving
from bench.settling import settled
from bench.watch import Sample, between, growth_mb, slope, watching

CUSTOMERS: Final = customer_ids("c", 100)
IDLE_S: Final = 15.0
"""Until the janitor's first round is over, which makes 90 days' partitions."""
PER_SECOND: Final = 500
EMITTERS: Final = 4
WARM_UP_S: Final = 30.0


class Run(msgspec.Struct, frozen=True):
    """MB of 10^6 bytes. `growth`: from the first tenth of the quiet load to the last; `slope` by least squares."""

    idle_mb: float
    flat_out_mb: float
    quiet_mb: float
    growth_mb: float
    slope_mb_per_hour: float


@click.command("memory")
@click.option("--minutes", default=60.0, show_default=True, help="Of 500 events a second.")
@click.option("--events", default=50_000, show_default=True, help="For the drain before it.")
def memory(minutes: float, events: int) -> None:
    """The daemon's memory: idle, while it drains, and what it grows by over a long quiet load."""
    run, others = measure(minutes, events)
    publish(
        f"the daemon's resident memory; then {minutes:g} minutes at {PER_SECOND}/s",
        [run],
        [
            Figure("daemon's memory, idle", run.idle_mb, "MB", 70, at_most=True),
            Figure("daemon's memory, flat out", run.flat_out_mb, "MB", 250, at_most=True),
            Figure(f"growth over {minutes:g} minutes at {PER_SECOND}/s", run.growth_mb, "MB", 2, at_most=True),
        ],
        others=others,
    )


def measure(minutes: float, drained: int) -> tuple[Run, float]:
    """One daemon through all three: idle, a drain of so many events, so many minutes of the load."""
    with stage(len(CUSTOMERS)) as on:
        migrated(on)
        register(on, CUSTOMERS)
        arrivals = Arrivals(on)
        meter = Meter(postgres=on.postgres.pid, receiver=on.receiver.pid)
        with serving(on) as daemon:
            time.sleep(IDLE_S)
            idle_mb = daemon.rss_mb()
            flat_out_mb = max(s.rss_mb for s in _flat_out(on, daemon, arrivals, drained))
            samples, from_s, to_s = _quiet(on, daemon, arrivals, minutes)
        others = meter.costs().others
    line = [(s.at_s / 3600, s.rss_mb) for s in between(samples, from_s, to_s)]
    return Run(idle_mb, flat_out_mb, line[0][1], growth_mb(samples, from_s, to_s), slope(line)), others


def _flat_out(on: Stage, daemon: Serving, arrivals: Arrivals, events: int) -> list[Sample]:
    with on.sql() as db, watching(on, daemon) as samples:
        since = emit_at_once(db, events, CUSTOMERS)
        settled(db, arrivals, duties(db, since))
    return samples


def _quiet(on: Stage, daemon: Serving, arrivals: Arrivals, minutes: float) -> tuple[list[Sample], float, float]:
    load = Pace(PER_SECOND, minutes * 60 + WARM_UP_S, EMITTERS)
    with on.sql() as db, watching(on, daemon) as samples, emitting(on, load, CUSTOMERS) as running:
        settled(db, arrivals, [e.duty for e in running.wait()])
    return samples, running.start_ns / 1e9 + WARM_UP_S, running.end_ns / 1e9
