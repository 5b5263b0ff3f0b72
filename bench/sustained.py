"""Sustained: a steady load for minutes. Flat means: nothing piles up, latency and memory stay what they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click
import msgspec

from bench.arrivals import Arrival, Arrivals
from bench.cpu import Meter
from bench.emitting import Emit, Pace, emitting, latencies_ms, percentile
from bench.figures import Figure, publish
from bench.parts import stage
from bench.seeding import customer_ids, migrated, register
from bench.serving import serving
from bench.settling import settled
from bench.watch import Sample, between, watching

CUSTOMERS: Final = customer_ids("c", 100)
EMITTERS: Final = 16
WARM_UP_S: Final = 10.0
"""The load's own first seconds: connections are opened, memory grows to its size. They are checked, not measured."""
PARTS: Final = 10


class Part(msgspec.Struct, frozen=True):
    """A tenth of the time: latency from call to arrival, rows waiting (at most), resident memory (median)."""

    arrived_per_second: float
    p50_ms: float
    p99_ms: float
    waiting: float
    rss_mb: float


@click.command("sustained")
@click.option("--per-second", default=2000, show_default=True, help="Events a second, by 16 emitters.")
@click.option(
    "--each",
    default=10,
    show_default=True,
    help="Events in one transaction: with one, commits take a core.",
)
@click.option("--minutes", default=5.0, show_default=True)
def sustained(per_second: int, each: int, minutes: float) -> None:
    """A steady load: does what waits, the latency or the memory grow? Each line is a tenth of the time."""
    parts, others = measure(Pace(per_second, minutes * 60 + WARM_UP_S, EMITTERS, each))
    first, last = parts[0], parts[-1]
    what = f"at {per_second:,}/s for {minutes:g} minutes"
    publish(
        f"{what}, {each} events a transaction, 1 KB, 100 endpoints; a line for each tenth of the time",
        parts,
        [
            Figure(f"{what}: p99 of emit call → arrival, last tenth", last.p99_ms, "ms", floor=first.p99_ms),
            Figure(
                f"{what}: growth of that p99 from the first tenth", last.p99_ms - first.p99_ms, "ms", 10, at_most=True
            ),
            Figure(f"{what}: rows waiting, at most", max(p.waiting for p in parts), "", per_second, at_most=True),
            Figure(f"{what}: growth of the daemon's memory", last.rss_mb - first.rss_mb, "MB", 5, at_most=True),
        ],
        others=others,
    )


def measure(load: Pace) -> tuple[list[Part], float]:
    """One run, by its tenths."""
    with stage(len(CUSTOMERS)) as on:
        migrated(on)
        register(on, CUSTOMERS)
        arrivals = Arrivals(on)
        meter = Meter(postgres=on.postgres.pid, receiver=on.receiver.pid)
        with (
            on.sql() as db,
            serving(on) as daemon,
            watching(on, daemon) as samples,
            emitting(on, load, CUSTOMERS) as running,
        ):
            emits = running.wait()
            arrived = settled(db, arrivals, [e.duty for e in emits])
        others = meter.costs().others
    from_s, to_s = running.start_ns / 1e9 + WARM_UP_S, running.end_ns / 1e9
    length_s = (to_s - from_s) / PARTS
    ends = [(from_s + n * length_s, from_s + (n + 1) * length_s) for n in range(PARTS)]
    return [_part(emits, arrived, samples, start_s, end_s) for start_s, end_s in ends], others


def _part(
    emits: Sequence[Emit], arrived: Sequence[Arrival], samples: Sequence[Sample], start_s: float, end_s: float
) -> Part:
    took_ms = latencies_ms([e for e in emits if start_s <= e.called_ns / 1e9 < end_s], arrived)
    seen = between(samples, start_s, end_s)
    return Part(
        arrived_per_second=sum(start_s <= a.at_ns / 1e9 < end_s for a in arrived) / (end_s - start_s),
        p50_ms=percentile(took_ms, 0.5),
        p99_ms=percentile(took_ms, 0.99),
        waiting=max(s.waiting for s in seen),
        rss_mb=percentile([s.rss_mb for s in seen], 0.5),
    )
