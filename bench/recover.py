"""Recover: what a bulk replay of a hundred thousand deliveries costs the live events beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import click
import msgspec

from bench.arrivals import SETTLE_S, Arrival, Arrivals, Duty, check_once
from bench.cpu import Meter
from bench.emitting import Emit, Pace, emitting, latencies_ms, percentile
from bench.figures import Figure, medians, publish
from bench.parts import Stage, stage
from bench.seeding import customer_ids, duties, emit_at_once, migrated, register
from bench.serving import Api, serving

LIVE: Final = customer_ids("c", 19)
WARM_UP: Final = Pace(200, 3, 4)
ARRIVE_S: Final = 30.0


class Run(msgspec.Struct, frozen=True):
    """Milliseconds from the call of emit to the arrival, of live events alone and beside a recovery.

    `same` are those live events that go to the endpoint which is being recovered. `recovered` a second meanwhile.
    """

    alone_p50: float
    alone_p99: float
    beside_p50: float
    beside_p99: float
    same_alone_p99: float
    same_beside_p99: float
    recovered: float


@click.command("recover")
@click.option("--events", default=100_000, show_default=True, help="Missed ones of one customer, to be recovered.")
@click.option("--per-second", default=200, show_default=True, help="Live events, one in twenty to the same endpoint.")
@click.option("--seconds", default=15.0, show_default=True, help="Length of each live load.")
@click.option("--runs", default=3, show_default=True)
def recover(events: int, per_second: int, seconds: float, runs: int) -> None:
    """Live events alone, then the same beside a recovery that has more to do than the load lasts."""
    with stage(len(LIVE) + runs) as on:
        key = migrated(on)
        register(on, LIVE, hosts=len(LIVE))
        meter = Meter(postgres=on.postgres.pid, receiver=on.receiver.pid)
        with serving(on) as daemon:
            load = Pace(per_second, seconds, 4)
            results = [once(on, Api(daemon, key), f"replayed{n}", events, load) for n in range(runs)]
        others = meter.costs().others
    middle = medians(results)
    ratio = middle.beside_p99 / middle.alone_p99
    same = middle.same_beside_p99 / middle.same_alone_p99
    publish(
        f"live events at {per_second}/s beside a recovery of {events:,}; milliseconds from the call of emit to arrival",
        results,
        [
            Figure("p99 of live events beside a recovery, against alone", ratio, "×", 1.5, at_most=True),
            Figure("the same, to the endpoint that is recovered", same, "×", 1.5, at_most=True),
            Figure("p99 of live events beside a recovery", middle.beside_p99, "ms", floor=middle.alone_p99),
            Figure("recovered deliveries beside live events", middle.recovered, "/s"),
        ],
        others=others,
    )


def once(on: Stage, api: Api, replayed: str, events: int, load: Pace) -> Run:
    """One customer's missed events, its endpoint, live load without and with the recovery, which is then cancelled."""
    since = datetime.now(UTC) - timedelta(seconds=1)
    with on.sql() as db:
        emit_at_once(db, events, [replayed])
    until = datetime.now(UTC)
    (webhook_id,) = register(on, [replayed], hosts=1, first_host=len(LIVE) + 1)
    with on.sql() as db:
        db.execute("CHECKPOINT")
        missed = {(event_id, f"/{replayed}") for event_id, _ in duties(db, since)}
    arrivals = Arrivals(on)
    arrivals.take()
    customers = [*LIVE, replayed]
    live(on, arrivals, WARM_UP, customers, set())
    alone, alone_at = live(on, arrivals, load, customers, set())
    wanted = {"since": since.isoformat(), "until": until.isoformat(), "status": "missed"}
    begun = api.call("POST", f"/webhooks/{webhook_id}/recover", wanted)
    assert begun["queued"] == events or not begun["exact"], begun
    beside, beside_at = live(on, arrivals, load, customers, missed)
    ended = api.call("POST", f"/recoveries/{begun['id']}/cancel")
    assert ended["state"] == "cancelled", "it was over before the load: nothing was measured"
    took_s = (datetime.fromisoformat(ended["ended_at"]) - datetime.fromisoformat(begun["created_at"])).total_seconds()
    (alone_p50, alone_p99), same_alone_p99 = figures(alone, alone_at, replayed)
    (beside_p50, beside_p99), same_beside_p99 = figures(beside, beside_at, replayed)
    recovered = ended["done"] / took_s
    return Run(alone_p50, alone_p99, beside_p50, beside_p99, same_alone_p99, same_beside_p99, recovered)


def figures(emits: list[Emit], arrived: list[Arrival], replayed: str) -> tuple[tuple[float, float], float]:
    """p50 and p99 of all, and p99 of those to the endpoint that is recovered."""
    every = latencies_ms(emits, arrived)
    same = latencies_ms(emits, arrived, lambda one: one.customer == replayed)
    return (percentile(every, 0.5), percentile(every, 0.99)), percentile(same, 0.99)


def live(
    on: Stage, arrivals: Arrivals, load: Pace, customers: Sequence[str], missed: set[Duty]
) -> tuple[list[Emit], list[Arrival]]:
    """One load, and the arrivals of its events. All of them came once, and beside them nothing but `missed` ones."""
    with emitting(on, load, customers) as running:
        emits = running.wait()
    time.sleep(SETTLE_S)
    arrived = arrivals.take()
    recovered = [one for one in arrived if one.duty in missed]
    check_once(recovered, {one.duty for one in recovered})
    own = [one for one in arrived if one.duty not in missed]
    check_once(own, [one.duty for one in emits])
    return emits, own
