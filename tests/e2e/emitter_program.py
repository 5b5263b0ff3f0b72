"""Run as a program of its own: an application that emits inside its transactions, and keeps its own books.

Each transaction writes one row of the application's own table `ledger` and emits one event; a fifth of them rolls
back. So the ledger is what really committed, whoever was killed meanwhile, and it owes the product nothing. Standard
output has a JSON line before each COMMIT or ROLLBACK and one after it. Ends when standard input ends.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from typing import Any, Final

import psycopg

THREADS: Final = 6
ROLLED_BACK: Final = 0.2
MEAN_HOLD_S: Final = 0.01
"""How long a transaction stays open after its emit, on average: commits come in another order than emits."""
PAUSE_S: Final = 0.05
MAX_BYTES: Final = 64_000
"""The largest payload; half of them are under 400 bytes."""
TYPES: Final = ("deal.won", "lead.created")
EMIT: Final = """
    WITH emitted AS (SELECT * FROM dealix.emit(%(customer_id)s, %(event_type)s, %(payload)s::text))
    INSERT INTO ledger (event_id, customer_id, event_type, matched)
    SELECT event_id, %(customer_id)s, %(event_type)s, matched FROM emitted RETURNING event_id
"""


def main(url: str, per_second: str, *customers: str) -> None:
    stop = threading.Event()
    interval_s = THREADS / float(per_second)
    threads = [threading.Thread(target=emit, args=(url, interval_s, customers, n, stop)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()


def emit(url: str, interval_s: float, customers: tuple[str, ...], number: int, stop: threading.Event) -> None:
    chance = random.Random(number)
    connection: psycopg.Connection[Any] | None = None
    at = time.monotonic()
    n = 0
    while not stop.wait(max(at - time.monotonic(), 0)):
        at = max(at + interval_s, time.monotonic() - 10 * interval_s)  # what an outage left out is not made up for
        n += 1
        try:
            if connection is None:
                connection = psycopg.connect(url, connect_timeout=2)
            transact(connection, chance, {"thread": number, "n": n}, customers)
        except psycopg.OperationalError as e:
            say(t=time.monotonic(), outcome="failed", error=str(e))
            if connection is not None:
                connection.close()
                connection = None
            stop.wait(PAUSE_S)


def transact(
    connection: psycopg.Connection[Any], chance: random.Random, data: dict[str, int], customers: tuple[str, ...]
) -> None:
    values = {
        "customer_id": chance.choice(customers),
        "event_type": chance.choice(TYPES),
        "payload": json.dumps({**data, "filler": "x" * min(int(chance.paretovariate(1.1) * 200), MAX_BYTES)}),
    }
    row = connection.execute(EMIT, values).fetchone()
    assert row is not None
    say(t=time.monotonic(), outcome="emitted", event_id=row[0])
    time.sleep(chance.expovariate(1 / MEAN_HOLD_S))
    if chance.random() < ROLLED_BACK:
        connection.rollback()
        say(t=time.monotonic(), outcome="rolled back", event_id=row[0])
    else:
        connection.commit()
        say(t=time.monotonic(), outcome="committed", event_id=row[0])


def say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")  # one write: lines of several threads stay whole
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
