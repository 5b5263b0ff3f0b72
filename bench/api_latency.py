"""API latency: what a request to the API takes while the sender in the same process drains flat out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Final

import click
import msgspec

from bench.arrivals import Arrivals
from bench.cpu import Meter
from bench.emitting import percentile
from bench.figures import Figure, Untrue, medians, publish
from bench.parts import Stage, stage
from bench.seeding import customer_ids, duties, emit_at_once, migrated, register
from bench.serving import Api, serving
from bench.settling import settled

CUSTOMERS: Final = customer_ids("c", 100)
PAUSE_S: Final = 0.01
"""Between an answer and the next request: a client, not a second load."""
ARRIVE_S: Final = 120.0
DRAINING: Final = 500
"""Deliveries that must have arrived before the first request counts."""


class Run(msgspec.Struct, frozen=True):
    """Milliseconds: all requests, and each of the three kinds; idle: all requests with nothing to send."""

    p50_ms: float
    p99_ms: float
    list_p50: float
    list_p99: float
    emit_p50: float
    emit_p99: float
    page_p50: float
    page_p99: float
    idle_p50_ms: float
    idle_p99_ms: float


@click.command("api-latency")
@click.option("--events", default=120_000, show_default=True, help="That the sender drains in each run.")
@click.option("--requests", default=600, show_default=True, help="In each run, a third of each kind.")
@click.option("--runs", default=5, show_default=True)
def api_latency(events: int, requests: int, runs: int) -> None:
    """Requests to the API (list webhooks, emit one, a page of deliveries) while the sender runs flat out."""
    with stage(len(CUSTOMERS)) as on:
        key = migrated(on)
        register(on, CUSTOMERS)
        meter = Meter(postgres=on.postgres.pid, receiver=on.receiver.pid)
        results = [once(on, key, events, requests) for _ in range(runs)]
        others = meter.costs().others
    middle = medians(results)
    publish(
        f"milliseconds a request while {events:,} events drain; list, emit, page: the three kinds of request",
        results,
        [
            Figure("API p50, sender flat out", middle.p50_ms, "ms", 10, 5, at_most=True, floor=middle.idle_p50_ms),
            Figure("API p99, sender flat out", middle.p99_ms, "ms", 40, 20, at_most=True, floor=middle.idle_p99_ms),
        ],
        others=others,
    )


def once(on: Stage, key: str, events: int, requests: int) -> Run:
    """The same requests to an idle daemon and to a busy one."""
    arrivals = Arrivals(on)
    arrivals.take()
    with on.sql() as db, serving(on) as daemon:
        (since,) = db.execute("SELECT clock_timestamp()").fetchall()[0]
        api = Api(daemon, key)
        _ask(api, 30)  # warm-up
        idle = _ask(api, requests)
        emitted = (30 + requests) // 3
        emit_at_once(db, events, CUSTOMERS)
        arrivals.wait_for(emitted + DRAINING, ARRIVE_S)
        busy = _ask(api, requests)
        if arrivals.count() >= events:
            raise Untrue("the sender was done before the last request was: give it more events")
        settled(db, arrivals, duties(db, since))
    kinds = [busy[n::3] for n in range(3)]
    return Run(*_both(busy), *_both(kinds[0]), *_both(kinds[1]), *_both(kinds[2]), *_both(idle))


def _both(took_ms: Sequence[float]) -> tuple[float, float]:
    return percentile(took_ms, 0.5), percentile(took_ms, 0.99)


def _ask(api: Api, requests: int) -> list[float]:
    """Milliseconds of each request, the three kinds in turns."""
    took_ms: list[float] = []
    for customer in islice(cycle(CUSTOMERS), requests // 3):
        event = {"customer_id": customer, "event_type": "deal.won", "payload": {"text": "x" * 1000}}
        for method, path, body in (
            ("GET", f"/webhooks?customer_id={customer}", None),
            ("POST", "/events/emit", event),
            ("GET", f"/deliveries?customer_id={customer}&limit=50", None),
        ):
            began = time.monotonic()
            api.call(method, path, body)
            took_ms.append((time.monotonic() - began) * 1000)
            time.sleep(PAUSE_S)
    return took_ms
