"""What stands in the database before a benchmark begins, by set-based SQL and COPY: a million rows in seconds."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import psycopg
import trio

from bench.arrivals import Duty
from bench.parts import START_S, Stage
from daemon.ids import CustomerId, SubscriptionId, new_subscription_id
from daemon.sealing import KeyRing
from daemon.store import api_keys, migrate, partitions
from daemon.store.connection import connect
from daemon.store.subscriptions import new_secret

DATA: Final = json.dumps({"text": "x" * 1000})
"""An event of 1 KB."""
DAYS_AHEAD: Final = 90
"""As the daemon makes them in its first minute, which shall not be measured."""

# Through the product's own function, so with everything that an emit costs and checks.
_EMIT: Final = """
    SELECT count(*) FROM generate_series(0, %(events)s - 1) AS i
    CROSS JOIN LATERAL dealix.emit((%(customers)s::text[])[i %% cardinality(%(customers)s::text[]) + 1],
                                   'deal.won', %(data)s::text)
"""
_DUTIES: Final = """
    SELECT e.id, regexp_replace(s.endpoint_url, '^https?://[^/]+', '')
    FROM dealix.events e JOIN dealix.subscriptions s USING (customer_id)
    WHERE e.created_at >= %s
"""


def migrated(on: Stage) -> str:
    """Bring the stage's database up to date; returns an ops key for the API."""

    async def fill() -> str:
        async with await connect(on.url, timeout_s=START_S, application_name="bench") as conn:
            await migrate.migrate(conn)
            await partitions.make_ahead(conn, days=DAYS_AHEAD)
            return (await api_keys.create(conn, None))[1]

    return trio.run(fill)


def register(
    on: Stage, customers: Sequence[str], *, hosts: int = 100, first_host: int = 1, each: int = 1
) -> list[SubscriptionId]:
    """`each` subscriptions for each customer, to all types, on `hosts` addresses from 127.0.0.`first_host` on.

    The first has a path that is the customer's name, the others the name with `/1`, `/2` and so on behind it.
    What is posted to a customer whose name begins with `hang` or `fail` is not answered, or by 500: see receiver.c.
    """
    ring = KeyRing(base64.b64decode(on.sealing_key))
    paths = [(c, f"{c}/{k}" if k else c) for c in customers for k in range(each)]
    made = [new_subscription_id() for _ in paths]
    with on.sql() as db, db.cursor() as cursor:
        with cursor.copy(
            "COPY dealix.subscriptions (id, customer_id, endpoint_url, secret_sealed) FROM STDIN WITH (FORMAT binary)"
        ) as copy:
            copy.set_types(["text", "text", "text", "bytea"])
            for n, (key, (customer, path)) in enumerate(zip(made, paths, strict=True)):
                sealed = ring.seal(new_secret(), table="subscriptions", column="secret", row=key)
                host = f"127.0.0.{n // each % hosts + first_host}"
                copy.write_row((key, customer, f"{on.scheme}://{host}:{on.port}/{path}", sealed))
        cursor.execute(
            "INSERT INTO dealix.subscription_health (subscription_id) SELECT * FROM unnest(%s::text[])", (made,)
        )
        cursor.execute("ANALYZE dealix.subscriptions, dealix.subscription_health")
    return made


def emit_at_once(db: psycopg.Connection, events: int, customers: Sequence[str]) -> datetime:
    """Emit so many events of 1 KB, the customers in turns, in one transaction; returns a moment before it began."""
    (since,) = db.execute("SELECT clock_timestamp()").fetchall()[0]
    db.execute(_EMIT, {"events": events, "customers": list(customers), "data": DATA})
    return since


def duties(db: psycopg.Connection, since: datetime) -> list[Duty]:
    """What the events emitted since then owe, by the tables that emit wrote and the subscriptions that there are."""
    return [(event_id, path) for event_id, path in db.execute(_DUTIES, (since,)).fetchall()]


def left(db: psycopg.Connection) -> int:
    """Rows that are not through yet: events before fan-out, deliveries unfinished."""
    sql = "SELECT (SELECT count(*) FROM dealix.outbox) + (SELECT count(*) FROM dealix.deliveries)"
    return int(db.execute(sql).fetchall()[0][0])


def customer_ids(prefix: str, count: int) -> list[CustomerId]:
    """Customers `prefix0`, `prefix1` and so on."""
    return [CustomerId(f"{prefix}{n}") for n in range(count)]
