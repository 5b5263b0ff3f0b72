"""Drain: events that wait in Postgres when the daemon starts, until the last one is delivered and recorded."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Final

import psycopg

from bench.parts import Stage, cpu_s, stage, subscribe, wait_until

HOSTS: Final = 100
EMIT: Final = """
    SELECT count(*) FROM generate_series(1, %s) AS i
    CROSS JOIN LATERAL dealix.emit('c' || (i %% %s), 'deal.won', %s::text)
"""
LIMIT_S: Final = 60.0


@dataclass(frozen=True)
class Drained:
    """One run: deliveries a second from the first request to the last record, CPU in µs for each delivery."""

    deliveries: int
    per_second: float
    daemon_us: float
    postgres_us: float
    receiver_us: float


def run(events: int, subscriptions: int, runs: int) -> None:
    """Warm up once, measure `runs` times on one database, print every run and the medians."""
    with stage(HOSTS) as on:
        subscribe(on, HOSTS, subscriptions)
        once(on, max(events // 10, 1000), subscriptions)
        results = [once(on, events, subscriptions) for _ in range(runs)]
    medians = {name: round(median(asdict(r)[name] for r in results), 1) for name in asdict(results[0])}
    print(
        f"drain: {events} events × {subscriptions} subscriptions over {HOSTS} endpoints, 1 KB, plain HTTP, {runs} runs"
    )
    print(f"  {'deliveries/s':>14} {'daemon µs':>10} {'Postgres µs':>12} {'receiver µs':>12}")
    for r in results:
        print(f"  {r.per_second:14.0f} {r.daemon_us:10.0f} {r.postgres_us:12.0f} {r.receiver_us:12.0f}")
    print(
        f"  {medians['per_second']:14.0f} {medians['daemon_us']:10.0f} {medians['postgres_us']:12.0f}"
        f" {medians['receiver_us']:12.0f}   median"
    )
    print(json.dumps({"bench": "drain", "events": events, "subscriptions": subscriptions, "median": medians}))


def once(on: Stage, events: int, subscriptions: int) -> Drained:
    """Emit, start a daemon, wait until the queue is empty, stop it."""
    deliveries = events * subscriptions
    with on.sql() as db:
        db.execute(EMIT, (events, HOSTS, json.dumps({"text": "x" * 1000})))
        db.execute("CHECKPOINT")
        before = _recorded(db)
        with on.daemon() as daemon:
            wait_until(lambda: _recorded(db) > before, LIMIT_S)
            first, began = _recorded(db), time.monotonic()
            costs = [cpu_s(pid) for pid in (daemon.pid, on.postgres.pid, on.receiver.pid)]
            wait_until(lambda: _recorded(db) >= before + deliveries, LIMIT_S)
            took_s = time.monotonic() - began
            ends = [cpu_s(pid) for pid in (daemon.pid, on.postgres.pid, on.receiver.pid)]
    counted = before + deliveries - first
    daemon_us, postgres_us, receiver_us = ((e - c) / counted * 1e6 for c, e in zip(costs, ends, strict=True))
    return Drained(deliveries, counted / took_s, daemon_us, postgres_us, receiver_us)


def _recorded(db: psycopg.Connection) -> int:
    row = db.execute("SELECT coalesce(sum(success), 0) FROM dealix.daily_stats").fetchone()
    return int(row[0]) if row else 0
