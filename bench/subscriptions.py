"""Subscriptions: what 100,000 registered ones cost a daemon when one in a hundred has work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import click
import msgspec

from bench.arrivals import Arrivals
from bench.cpu import Meter
from bench.figures import Figure, medians, publish
from bench.parts import POLL_US, Stage, stage
from bench.seeding import customer_ids, duties, emit_at_once, migrated, register
from bench.serving import serving, stretch
from bench.settling import settled

HOSTS: Final = 100
IDLE_S: Final = 3.0


class Drained(msgspec.Struct, frozen=True):
    """One daemon's life: seconds until it was ready, memory before and after the drain, deliveries a second."""

    ready_s: float
    idle_mb: float
    drained_mb: float
    per_second: float


class Run(msgspec.Struct, frozen=True):
    """With all registered, and with the active ones alone."""

    ready_s: float
    idle_mb: float
    drained_mb: float
    per_second: float
    few_ready_s: float
    few_drained_mb: float
    few_per_second: float

    @classmethod
    def of(cls, many: Drained, few: Drained) -> Run:
        """A pair of runs."""
        return cls(
            many.ready_s,
            many.idle_mb,
            many.drained_mb,
            many.per_second,
            few.ready_s,
            few.drained_mb,
            few.per_second,
        )


@click.command("subscriptions")
@click.option("--registered", default=100_000, show_default=True, help="One in a hundred of them is active.")
@click.option("--events", default=20_000, show_default=True, help="Drained in each run.")
@click.option("--runs", default=5, show_default=True)
def subscriptions(registered: int, events: int, runs: int) -> None:
    """Many registered subscriptions of which few have work: memory, time to ready, throughput."""
    results, others = measure(registered, events, runs)
    middle = medians(results)
    what = f"{registered:,} registered subscriptions, 1 % active"
    publish(
        f"{what}; few: the active ones alone",
        results,
        [
            Figure(f"{what}: daemon's memory", middle.drained_mb, "MB", 200, at_most=True, floor=middle.few_drained_mb),
            Figure(f"{what}: ready after", middle.ready_s, "s", 3, at_most=True, floor=middle.few_ready_s),
            Figure(
                f"{what}: throughput against the active ones alone", middle.per_second / middle.few_per_second, "×", 0.9
            ),
        ],
        others=others,
    )


def measure(registered: int, events: int, runs: int) -> tuple[list[Run], float]:
    """In turns with the active ones alone and with the others registered too, so that neither has the emptier log."""
    names = customer_ids("c", registered)
    active = names[: max(registered // 100, 1)]
    with stage(HOSTS, poll_us=POLL_US) as on:
        migrated(on)
        register(on, active, hosts=HOSTS)
        meter = Meter(postgres=on.postgres.pid, receiver=on.receiver.pid)
        once(on, active, events)  # warm-up
        results: list[Run] = []
        for _ in range(runs):
            few = once(on, active, events)
            register(on, names[len(active) :], hosts=HOSTS)
            results.append(Run.of(once(on, active, events), few))
            _forget(on, active)
        others = meter.costs().others
    return results, others


def _forget(on: Stage, active: Sequence[str]) -> None:
    """All but the active ones, without a trace."""
    with on.sql() as db:
        db.execute("DELETE FROM dealix.subscriptions WHERE customer_id <> ALL (%s)", (list(active),))
        db.execute("VACUUM FULL dealix.subscriptions, dealix.subscription_health")
        db.execute("ANALYZE dealix.subscriptions, dealix.subscription_health")


def once(on: Stage, active: Sequence[str], events: int) -> Drained:
    """A daemon starts, events come at once; measured from the first tenth to the last."""
    arrivals = Arrivals(on)
    arrivals.take()
    with on.sql() as db, serving(on) as daemon:
        time.sleep(IDLE_S)
        idle_mb = daemon.rss_mb()
        since = emit_at_once(db, events, active)
        speed = stretch(on, [daemon], arrivals, (events // 10, events * 9 // 10)).per_second
        settled(db, arrivals, duties(db, since))
        return Drained(daemon.ready_s, idle_mb, daemon.rss_mb(), speed)
