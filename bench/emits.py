"""Emitting by many SQL clients at once, in the forms that are compared, and whether all came of it that should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from bench import pgbench
from bench.arrivals import Arrivals
from bench.figures import Untrue
from bench.parts import Stage
from bench.pgbench import Done, Load
from bench.seeding import DATA, customer_ids, duties, migrated, register
from bench.settling import settled

CLIENTS: Final = 32
CUSTOMERS: Final = customer_ids("c", 100)
_PICK: Final = "\\set n random(0, 99)\n"
EMIT: Final = f"{_PICK}SELECT event_id FROM dealix.emit('c' || :n, 'deal.won', :data::text);"
EMIT_SILENT: Final = f"{_PICK}SELECT event_id FROM dealix.emit('c' || :n, 'deal.won', :data::text, notify => false);"
INSERT: Final = f"""{_PICK}
WITH event AS (
    INSERT INTO dealix.events (id, customer_id, type, data, created_at, matched)
    SELECT 'evt_' || lpad(to_hex(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
           || left(replace(gen_random_uuid()::text, '-', ''), 12),
           c.customer_id, 'deal.won', :data::text, clock_timestamp(), cardinality(c.subscription_ids)
    FROM bench.customers c WHERE c.customer_id = 'c' || :n
    RETURNING id, customer_id, (created_at AT TIME ZONE 'UTC')::date AS day)
INSERT INTO dealix.outbox (shard, customer_id, event_id, event_day, event_type, data_bytes, subscription_ids)
SELECT c.shard, event.customer_id, event.id, event.day, 'deal.won', octet_length(:data::text), c.subscription_ids
FROM event JOIN bench.customers c USING (customer_id);
"""
"""What `dealix.emit` writes, with all that it has to find out at hand, and without any wake-up."""
_PREPARE: Final = """
CREATE SCHEMA bench;
CREATE TABLE bench.customers (customer_id text PRIMARY KEY, shard smallint NOT NULL, subscription_ids text[] NOT NULL);
INSERT INTO bench.customers
SELECT customer_id, dealix.shard_of(customer_id), array_agg(id) FROM dealix.subscriptions GROUP BY customer_id;
ANALYZE bench.customers;
"""


class Beside(msgspec.Struct, frozen=True):
    """One run: events a second, of `emit` without its wake-up, and of the same INSERTs."""

    emit_per_s: float
    silent_per_s: float
    insert_per_s: float
    ratio: float
    to_silent: float


def prepare(on: Stage) -> None:
    """A hundred customers with a subscription each, and what the plain INSERTs want to know of them."""
    migrated(on)
    register(on, CUSTOMERS)
    with on.sql() as db:
        db.execute(_PREPARE)


def beside(emitted: Callable[[str], Done], turn: int) -> Beside:
    """All three, in another order in the next turn."""
    scripts = (EMIT, EMIT_SILENT, INSERT)
    first = turn % len(scripts)
    rates = {script: emitted(script).per_second for script in scripts[first:] + scripts[:first]}
    emit, silent, insert = (rates[script] for script in scripts)
    return Beside(emit, silent, insert, emit / insert, emit / silent)


def delivered(on: Stage, arrivals: Arrivals, events: int, script: str) -> Done:
    """Run a script while a daemon delivers, and wait until it is through. Raises Untrue unless all arrived, once."""
    with on.sql() as db:
        db.execute("CHECKPOINT")
        (since,) = db.execute("SELECT clock_timestamp()").fetchall()[0]
        done = pgbench.run(on, Load(script, CLIENTS, events), data=DATA)
        wanted = duties(db, since)
        if len(wanted) != done.transactions:
            raise Untrue(f"{done.transactions} emits made {len(wanted)} events")
        settled(db, arrivals, wanted)
    return done


def written(on: Stage, events: int, script: str) -> Done:
    """Run a script where no daemon is. Raises Untrue unless there is an event and an outbox row for each emit."""
    with on.sql() as db:
        db.execute("TRUNCATE dealix.outbox")
        db.execute("CHECKPOINT")
        (since,) = db.execute("SELECT clock_timestamp()").fetchall()[0]
        done = pgbench.run(on, Load(script, CLIENTS, events), data=DATA)
        sql = """
            SELECT count(*), count(o.event_id) FROM dealix.events e
            LEFT JOIN dealix.outbox o ON o.event_id = e.id AND cardinality(o.subscription_ids) = e.matched
            WHERE e.created_at >= %s
        """
        counts = db.execute(sql, (since,)).fetchall()[0]
    if counts != (done.transactions, done.transactions):
        raise Untrue(f"{done.transactions} emits made {counts[0]} events and {counts[1]} outbox rows")
    return done
