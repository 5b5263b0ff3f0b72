"""Replicas: two daemons on one database, against one: CPU for each delivery, who does how much, joining and leaving."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import click
import msgspec

from bench.arrivals import Arrival, Arrivals
from bench.cpu import Meter
from bench.emitting import NotThatFast, Pace, emitting, latencies_ms
from bench.figures import Figure, Untrue, medians, publish
from bench.parts import POLL_US, Stage, stage, wait_until
from bench.seeding import customer_ids, duties, emit_at_once, migrated, register
from bench.serving import Stretch, serving, stretch
from bench.settling import settled
from daemon.store.shards import OWN_CLASS, SHARDS, shard_of

CUSTOMERS: Final = customer_ids("c", 1000)
HOSTS: Final = 100
SHARE_S: Final = 15.0
JOIN_AT: Final = 0.25
"""Of the load's length: when the second daemon joins; and when the first one stops."""
LEAVE_AT: Final = 0.6

_OWNED: Final = """
    SELECT pid, array_agg(objid::int) FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND classid::bigint = %s AND objsubid = 2
    GROUP BY pid
"""


class Run(msgspec.Struct, frozen=True):
    """CPU of daemons and Postgres for each delivery, with two and with one; deliveries a second with both.

    The larger of the two daemons' shares: of the deliveries, by the shards that each owns, and of their CPU.
    """

    two_cpu_us: float
    one_cpu_us: float
    larger_share: float
    larger_cpu_share: float
    two_per_second: float
    one_per_second: float

    @classmethod
    def of(cls, one: Stretch, two: Stretch, larger_share: float) -> Run:
        """From both halves of a run."""
        return cls(
            two.cpu_us,
            one.cpu_us,
            larger_share,
            max(two.daemons_s) / sum(two.daemons_s),
            two.per_second,
            one.per_second,
        )


@click.command("replicas")
@click.option("--events", default=20_000, show_default=True, help="Drained by one daemon and by two, in each run.")
@click.option("--seconds", default=20.0, show_default=True, help="Of a steady load: one daemon joins and one leaves.")
@click.option("--per-second", default=1000, show_default=True, help="Events of that load.")
@click.option("--runs", default=5, show_default=True)
def replicas(events: int, seconds: float, per_second: int, runs: int) -> None:
    """Two daemons on one database: what a second one costs; joining and leaving under load causes no duplicate."""
    with stage(HOSTS, poll_us=POLL_US) as on:
        migrated(on)
        register(on, CUSTOMERS, hosts=HOSTS)
        meter = Meter(postgres=on.postgres.pid, receiver=on.receiver.pid)
        alone(on, events)  # warm-up
        results = [Run.of(alone(on, events), *together(on, events)) for _ in range(runs)]
        longest_ms = join_and_leave(on, Pace(per_second, seconds, 8))
        others = meter.costs().others
    middle = medians(results)
    ratio = middle.two_cpu_us / middle.one_cpu_us
    publish(
        "one daemon and two, 1,000 customers, 100 endpoints; then one joins and one leaves under load: no duplicate",
        results,
        [
            Figure("two replicas: CPU per delivery against one", ratio, "×", 1.15, at_most=True),
            Figure("two replicas: the larger share of the work", 100 * middle.larger_share, "%", 60, at_most=True),
            Figure("two replicas: the larger share of their CPU", 100 * middle.larger_cpu_share, "%", 60, at_most=True),
            Figure("two replicas: deliveries a second", middle.two_per_second, "/s", floor=middle.one_per_second),
            Figure(
                f"a replica joins, another leaves, at {per_second:,}/s, nothing twice: longest call → arrival",
                longest_ms,
                "ms",
            ),
        ],
        others=others,
    )


def alone(on: Stage, events: int) -> Stretch:
    """One daemon drains."""
    arrivals = Arrivals(on)
    arrivals.take()
    with on.sql() as db, serving(on) as daemon:
        since = emit_at_once(db, events, CUSTOMERS)
        measured = stretch(on, [daemon], arrivals, (events // 10, events * 9 // 10))
        settled(db, arrivals, duties(db, since))
    return measured


def together(on: Stage, events: int) -> tuple[Stretch, float]:
    """Two drain, once each has half of the shards; and the larger share of the deliveries."""
    arrivals = Arrivals(on)
    arrivals.take()
    with on.sql() as db, serving(on) as first, serving(on) as second:
        owners = _shared(on)
        since = emit_at_once(db, events, CUSTOMERS)
        measured = stretch(on, [first, second], arrivals, (events // 10, events * 9 // 10))
        arrived = settled(db, arrivals, duties(db, since))
        if _shared(on) != owners:
            raise Untrue("shards changed hands meanwhile: nobody can tell who did what")
    return measured, larger_share(arrived, owners)


def _shared(on: Stage) -> dict[int, frozenset[int]]:
    """The shards by the session that owns them, once two have half each."""
    owners: dict[int, frozenset[int]] = {}

    def is_shared() -> bool:
        owners.clear()
        owners.update((pid, frozenset(shards)) for pid, shards in db.execute(_OWNED, (OWN_CLASS,)).fetchall())
        return [len(shards) for shards in owners.values()] == [SHARDS // 2] * 2

    with on.sql() as db:
        wait_until(is_shared, SHARE_S)
    return owners


def larger_share(arrived: Sequence[Arrival], owners: dict[int, frozenset[int]]) -> float:
    """Of the deliveries, by the shards of their customers; 0.5–1 for two."""
    of_shard = {shard: pid for pid, shards in owners.items() for shard in shards}
    done = Counter(of_shard[shard_of(a.path.removeprefix("/"))] for a in arrived)
    return max(done.values()) / len(arrived)


def join_and_leave(on: Stage, load: Pace) -> float:
    """Under a steady load a second daemon joins, then the first one stops: the longest emit call → arrival, in ms.

    Raises Untrue for a duplicate or a loss, NotThatFast where that took longer than the load.
    """
    arrivals = Arrivals(on)
    arrivals.take()
    with on.sql() as db, ExitStack() as elder, ExitStack() as younger:
        elder.enter_context(serving(on))
        with emitting(on, load, CUSTOMERS) as running:
            time.sleep(max(running.start_ns / 1e9 + JOIN_AT * load.seconds - time.monotonic(), 0))
            younger.enter_context(serving(on))
            _shared(on)
            time.sleep(max(running.start_ns / 1e9 + LEAVE_AT * load.seconds - time.monotonic(), 0))
            elder.close()
            left_at_ns = time.monotonic_ns()
            emits = running.wait()
        arrived = settled(db, arrivals, [e.duty for e in emits])
    if not any(a.at_ns > left_at_ns for a in arrived):
        raise NotThatFast("the load was over before the first daemon had left: the machine does not bear this load")
    return max(latencies_ms(emits, arrived))
