"""Flood: while one customer emits a hundred thousand events, when does another customer's single event arrive."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import count
from typing import Final

import click
import msgspec
import psycopg

from bench.arrivals import Arrival, Arrivals, Duty
from bench.cpu import Meter
from bench.emitter import EMIT
from bench.figures import Figure, Untrue, medians, publish
from bench.parts import stage
from bench.seeding import DATA, duties, emit_at_once, migrated, register
from bench.serving import serving
from bench.settling import settled
from daemon.store.shards import shard_of

FLOODING: Final = "flooding"
CHUNK: Final = 10_000
"""Events of one transaction of the flood."""
ALONE_EVERY_S: Final = 0.25


class Run(msgspec.Struct, frozen=True):
    """Milliseconds from the call of emit to the arrival of a single event.

    Of a customer in another shard than the flooding one's; of one in the same shard, as one in 64 is; of the former
    while nothing else goes on.
    """

    other_shard_ms: float
    same_shard_ms: float
    alone_ms: float


class Single(msgspec.Struct, frozen=True):
    """An event among the flood."""

    called_ns: int
    duty: Duty


@click.command("flood")
@click.option("--events", default=100_000, show_default=True, help="Of the flooding customer.")
@click.option("--singles", default=24, show_default=True, help="Events of each of the others meanwhile.")
@click.option("--every", "every_s", default=0.5, show_default=True, help="Seconds between them.")
def flood(events: int, singles: int, every_s: float) -> None:
    """One customer floods, others emit single events meanwhile: when do these arrive? A line for each event."""
    runs, others = measure(events, singles, every_s)
    middle = medians(runs)
    what = f"single event while another customer floods {events:,}"
    publish(
        "milliseconds from the call of emit to the arrival of a single event",
        runs,
        [
            Figure(f"{what}: median", middle.other_shard_ms, "ms", 100, 30, at_most=True, floor=middle.alone_ms),
            Figure(f"{what}: longest", max(r.other_shard_ms for r in runs), "ms", 100, at_most=True),
            Figure(f"{what}, in its own shard: median", middle.same_shard_ms, "ms", 100, 30, at_most=True),
            Figure(f"{what}, in its own shard: longest", max(r.same_shard_ms for r in runs), "ms", 100, at_most=True),
        ],
        others=others,
    )


def neighbours() -> tuple[str, str]:
    """A customer whose shard is another one than the flooding customer's, and one whose shard is the same."""
    names = [f"quiet{n}" for n in range(1000)]
    same = next(name for name in names if shard_of(name) == shard_of(FLOODING))
    return next(name for name in names if shard_of(name) != shard_of(FLOODING)), same


def measure(events: int, singles: int, every_s: float) -> tuple[list[Run], float]:
    """Singles alone, then the flood, and singles of both neighbours from its first commit on."""
    other, same = neighbours()
    with stage(3) as on:
        migrated(on)
        register(on, [FLOODING, other, same], hosts=3)
        arrivals = Arrivals(on)
        meter = Meter(postgres=on.postgres.pid, receiver=on.receiver.pid)
        with on.sql() as db, serving(on):
            (since,) = db.execute("SELECT clock_timestamp()").fetchall()[0]
            emit_single(db, other)  # warm-up
            alone = [emit_single(db, other, ALONE_EVERY_S) for _ in range(singles)]
            flooding = Flood(on.url, events)
            flooding.begun.wait()
            elsewhere: list[Single] = []
            within: list[Single] = []
            for _ in range(singles):
                elsewhere.append(emit_single(db, other))
                within.append(emit_single(db, same, every_s))
            if arrivals.count() >= events:
                raise Untrue("the flood was over before the last of the single events: give it more, or them less time")
            flooding.wait()
            arrived = settled(db, arrivals, duties(db, since))
        others = meter.costs().others
    columns = [took_ms(arrived, column) for column in (elsewhere, within, alone)]
    return [Run(*row) for row in zip(*columns, strict=True)], others


def emit_single(db: psycopg.Connection, customer: str, then_s: float = 0.0) -> Single:
    """Emit one event, then pause."""
    called_ns = time.monotonic_ns()
    ((event_id,),) = db.execute(EMIT, (customer, DATA, True), prepare=True).fetchall()
    time.sleep(then_s)
    return Single(called_ns, (event_id, f"/{customer}"))


class Flood:
    """Emits in the background, a transaction for each 10,000 events. `begun` is set by the first commit."""

    def __init__(self, url: str, events: int) -> None:
        self.begun = threading.Event()
        self._thread = threading.Thread(target=self._emit, args=(url, events))
        self._thread.start()

    def _emit(self, url: str, events: int) -> None:
        with psycopg.connect(url, autocommit=True) as db:
            for done in count(0, CHUNK):
                if done >= events:
                    return
                emit_at_once(db, min(CHUNK, events - done), [FLOODING])
                self.begun.set()

    def wait(self) -> None:
        """Until all is committed."""
        self._thread.join()


def took_ms(arrived: Sequence[Arrival], singles: Sequence[Single]) -> list[float]:
    """From call to arrival."""
    at_ns = {arrival.duty: arrival.at_ns for arrival in arrived}
    return [(at_ns[single.duty] - single.called_ns) / 1e6 for single in singles]
