"""Waiting for the end of a load: each delivery arrived and recorded, nothing left over, nothing twice."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

import psycopg

from bench.arrivals import SETTLE_S, Arrival, Arrivals, Duty, check_once
from bench.figures import Untrue
from bench.parts import wait_until
from bench.seeding import left

LEAST_PER_S: Final = 200
"""A daemon that delivers less has got stuck."""
START_S: Final = 30.0
_LEFT: Final = """
    SELECT 'outbox', count(*) FROM dealix.outbox HAVING count(*) > 0
    UNION ALL
    SELECT CASE WHEN claimed THEN 'claimed' WHEN due IS NULL THEN 'held' ELSE 'due' END || ' at attempt ' || attempt,
           count(*)
    FROM dealix.deliveries GROUP BY 1
"""


def settled(db: psycopg.Connection, arrivals: Arrivals, wanted: Collection[Duty]) -> list[Arrival]:
    """Wait for all of `wanted`, then check what arrived since the last `take`, and return it. Raises Untrue."""
    await_end(db, arrivals, wanted)
    time.sleep(SETTLE_S if wanted else 0)
    arrived = arrivals.take()
    check_once(arrived, wanted)
    return arrived


def await_end(db: psycopg.Connection, arrivals: Arrivals, wanted: Collection[Duty]) -> None:
    """Wait until so many came and nothing is left over. Raises Untrue, with what is, where that takes too long."""
    limit_s = START_S + len(wanted) / LEAST_PER_S
    try:
        arrivals.wait_for(len(wanted), limit_s)
        wait_until(lambda: left(db) == 0, START_S)
    except TimeoutError as e:
        rest = ", ".join(f"{count} {state}" for state, count in db.execute(_LEFT).fetchall())
        raise Untrue(
            f"{arrivals.count()} of {len(wanted)} arrived in {limit_s:.0f} s; left over: {rest or 'none'}"
        ) from e
