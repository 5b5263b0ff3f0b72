"""Emit in SQL: 32 clients, one event a transaction, against the same rows by plain INSERTs; what the probe costs."""

from __future__ import annotations

from functools import partial
from typing import Final

import click
import msgspec
import psycopg

from bench.arrivals import Arrivals
from bench.cpu import Meter
from bench.emits import CLIENTS, CUSTOMERS, EMIT, EMIT_SILENT, Beside, beside, delivered, prepare, written
from bench.figures import Figure, medians, publish
from bench.parts import POLL_US, Stage, stage
from bench.serving import serving

# The same probe as in dealix.emit, asked when the transaction commits instead of when it emits.
_PROBE_AT_COMMIT: Final = """
CREATE FUNCTION bench.probe() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('dealix_wake', NEW.shard::text)
    WHERE pg_try_advisory_lock_shared(1145372674, NEW.shard) AND pg_advisory_unlock_shared(1145372674, NEW.shard);
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER probe AFTER INSERT ON dealix.outbox DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION bench.probe();
ALTER TABLE dealix.outbox DISABLE TRIGGER probe;
"""
_BUSY: Final = "SELECT pg_advisory_lock(1145372674, shard) FROM generate_series(0, 63) AS shard"
"""As a daemon holds them that is at work: the probe finds that nobody needs to be woken."""
_WARM_UP: Final = 4
"""A so-many-th part of a run."""


class Probed(msgspec.Struct, frozen=True):
    """One run: events a second, and CPU of Postgres in µs for each: without a probe, with it, with it at commit."""

    silent_per_s: float
    emit_per_s: float
    commit_per_s: float
    silent_us: float
    emit_us: float
    commit_us: float


@click.command()
@click.option("--events", default=16_000, show_default=True)
@click.option("--runs", default=5, show_default=True)
def emit(events: int, runs: int) -> None:
    """Emit from 32 clients while the daemon delivers, against plain INSERTs in turns."""
    results: list[Beside] = []
    others = 0.0
    with stage(len(CUSTOMERS), poll_us=POLL_US) as on:
        prepare(on)
        with serving(on) as daemon:
            arrivals = Arrivals(on)
            delivered(on, arrivals, events // _WARM_UP, EMIT)
            for turn in range(runs):
                meter = Meter(daemon=daemon.pid, postgres=on.postgres.pid, receiver=on.receiver.pid)
                results.append(beside(partial(delivered, on, arrivals, events), turn))
                others = max(others, meter.costs().others)
    m = medians(results)
    what = f"{CLIENTS} clients, one event of 1 KB a transaction, the daemon delivering, {runs} runs of {events:,}"
    figures = [
        Figure(f"emit, {CLIENTS} concurrent transactions, daemon draining", m.emit_per_s, "/s", floor=m.insert_per_s),
        Figure("the same against INSERTs without any NOTIFY", m.ratio, "×", 0.8, 0.95),
        Figure("the same against emit without its wake-up: what NOTIFY costs", m.to_silent, "×"),
    ]
    publish(what, results, figures, others=others)


@click.command("emit-alone")
@click.option("--events", default=16_000, show_default=True)
@click.option("--runs", default=5, show_default=True)
def emit_alone(events: int, runs: int) -> None:
    """Emit from 32 clients with no daemon running, against plain INSERTs in turns."""
    results: list[Beside] = []
    others = 0.0
    with stage(len(CUSTOMERS)) as on:
        prepare(on)
        written(on, events // _WARM_UP, EMIT)
        for turn in range(runs):
            meter = Meter(postgres=on.postgres.pid)
            results.append(beside(partial(written, on, events), turn))
            others = max(others, meter.costs().others)
    m = medians(results)
    figure = Figure("emit with no replica running", m.emit_per_s, "/s", floor=m.insert_per_s, ratio=m.ratio)
    what = f"{CLIENTS} clients, one event of 1 KB a transaction, no daemon, {runs} runs of {events:,}"
    publish(what, results, [figure], others=others)


@click.command("emit-probe")
@click.option("--events", default=16_000, show_default=True)
@click.option("--runs", default=5, show_default=True)
def emit_probe(events: int, runs: int) -> None:
    """Emit from 32 clients without the wake-up's probe, with it, and with it at commit: a trial in this database alone.

    No daemon runs; the locks of one that is at work are held, so that the probe finds nobody to wake.
    """
    results: list[Probed] = []
    others = 0.0
    with stage(len(CUSTOMERS)) as on, on.sql() as owner:
        prepare(on)
        owner.execute(_PROBE_AT_COMMIT)
        owner.execute(_BUSY)
        written(on, events // _WARM_UP, EMIT)
        for _ in range(runs):
            meter = Meter(postgres=on.postgres.pid)
            results.append(_probed(on, owner, events))
            others = max(others, meter.costs().others)
    m = medians(results)
    what = f"{CLIENTS} clients, one event of 1 KB a transaction, the owner at work, {runs} runs of {events:,}"
    figures = [
        Figure("wake-up probe at emit: CPU of Postgres for an emit", m.emit_us, "µs", at_most=True, floor=m.silent_us),
        Figure("the same, probe at commit", m.commit_us, "µs", at_most=True, floor=m.silent_us),
    ]
    publish(what, results, figures, others=others)


def _probed(on: Stage, owner: psycopg.Connection, events: int) -> Probed:
    silent = written(on, events, EMIT_SILENT)
    at_emit = written(on, events, EMIT)
    owner.execute("ALTER TABLE dealix.outbox ENABLE TRIGGER probe")
    at_commit = written(on, events, EMIT_SILENT)
    owner.execute("ALTER TABLE dealix.outbox DISABLE TRIGGER probe")
    each = (silent, at_emit, at_commit)
    return Probed(*(done.per_second for done in each), *(done.postgres_us for done in each))
