"""Endpoints that fail in every way, and one that was down and comes back to a backlog: the others do not notice."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.figures import Enter
from tests.chaos.stage import SICK, Stage
from tests.chaos.watching import holding, watched
from tests.e2e.figures import Tell
from tests.e2e.load import PER_SECOND, PER_SUBSCRIPTION
from tests.e2e.traffic import Emitter, Receiver
from tests.support.daemon_process import Installation, until

pytestmark = [pytest.mark.timeout(600)]

BACKLOG: Final = 5000
OVERLAP: Final = 1
"""A connection that the daemon has given up may still be open at the receiver when the next request comes."""
P99_S: Final = 0.5
SOAK_S: Final = float(os.environ.get("SOAK_S", "3600"))
SLOPE_KB: Final = 1024
EMIT_MANY: Final = """
    WITH emitted AS (
        SELECT emitted.* FROM generate_series(1, %(count)s) AS n,
            LATERAL dealix.emit(%(customer)s, 'deal.won', json_build_object('n', n)::text) AS emitted)
    INSERT INTO ledger SELECT event_id, %(customer)s, 'deal.won', matched FROM emitted
"""
DEAD_ROWS: Final = "SELECT coalesce(max(n_dead_tup), 0) FROM pg_stat_user_tables WHERE schemaname = 'dealix'"


def p99_s(stage: Stage, emitter: Emitter, since: float, before: float) -> float:
    """From COMMIT to the first request at the quick endpoints, of what was committed in that time."""
    committed = emitter.events("committed")
    quick = {s.name for s in stage.scene.subscribed[:20]}
    first: dict[tuple[str, str], float] = {}
    for r in stage.scene.receiver.receipts():
        if r.name in quick and since <= committed.get(r.event_id, before) < before:
            first.setdefault(r.duty, r.at)
    took = sorted(at - committed[event_id] for (event_id, _), at in first.items())
    return took[int(len(took) * 0.99)]


def most_at_once(receiver: Receiver) -> dict[str, int]:
    """The most requests that each endpoint, of those that answer, had open at a time."""
    ends = {r.claim: at for at, r in receiver.answers()}
    changes: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    for r in receiver.receipts():
        if r.claim in ends:
            changes[r.name] += [(r.at, 1), (ends[r.claim], -1)]
    most: dict[str, int] = {}
    for name, found in changes.items():
        now = most[name] = 0
        for _, change in sorted(found):
            now += change
            most[name] = max(most[name], now)
    return most


@pytest.mark.chaos
def test_an_endpoint_that_comes_back_to_a_backlog_gets_it_and_the_others_do_not_notice(
    migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path, enter: Enter, tell: Tell
) -> None:
    environ = {"DEALIX_DELIVERY__BREAKER_COOLDOWN_S": 5, "DEALIX_DELIVERY__DISABLE_AFTER": 1000}
    stage = Stage.on(migrated_database, installation, receiver, tmp_path, environ)
    daemon = stage.start()
    stage.invite(daemon)
    down = stage.scene.subscribe(daemon, "down", status="reset", healthy=False)
    with stage.load() as emitter:
        emitter.go_on(600)
        began = time.monotonic()
        stage.scene.rows(EMIT_MANY, {"count": BACKLOG, "customer": "down"})
        emitter.go_on(6000)
        ended = time.monotonic()
        receiver.tell(down.name, answer="200")
        back_at = time.monotonic()
        # The cool-down doubles; attempts that failed before it opened wait for their next step.
        until(lambda: delivered(receiver, down.name) > BACKLOG - 100, within_s=300, what="the backlog")
        took_s = (gone_at := time.monotonic()) - back_at
        emitter.go_on(300)  # what was committed last has arrived by then
        quiet, busy = p99_s(stage, emitter, 0, began), p99_s(stage, emitter, began, ended)
        later = p99_s(stage, emitter, back_at, gone_at)
    verdict = stage.judge(emitter)
    most = most_at_once(receiver)
    tell(f"p99 of the others: {quiet:.3f} s before, {busy:.3f} s meanwhile, {later:.3f} s with the backlog going out")
    enter("C13", f"endpoints that fail in every way; one down, {BACKLOG} waiting", len(SICK) + 1, verdict, emitter,
          recovery_s=took_s)  # fmt: skip
    assert verdict.duplicates == 0
    assert max(most.values()) <= PER_SUBSCRIPTION + OVERLAP
    assert max(busy, later) < P99_S
    assert daemon.stop() == 0


def delivered(receiver: Receiver, name: str) -> int:
    return sum(duty[1] == name for duty in receiver.answered())


@pytest.mark.chaos
def test_nobody_hears_of_anything_after_a_disable(
    migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path, enter: Enter
) -> None:
    """Switched off and on under load, twenty times, with two replicas of which either is asked."""
    stage, times = Stage.on(migrated_database, installation, receiver, tmp_path), 20
    daemons = [stage.start(), stage.start()]
    stage.invite(daemons[0], sick=False)
    switched = [stage.scene.subscribe(daemons[0], f"switched-{n}", delay_ms=200, healthy=False) for n in range(4)]
    stage.emit_for += [s.customer_id for s in switched] * 4
    with stage.load() as emitter:
        for n in range(times):
            subscribed = switched[n % len(switched)]
            stage.scene.rows(EMIT_MANY, {"count": 60, "customer": subscribed.customer_id})
            emitter.go_on(20)
            stage.scene.switch(daemons[n % 2], subscribed, enabled=False)
            emitter.go_on(400)
            stage.scene.switch(daemons[n // 2 % 2], subscribed, enabled=True)
    verdict = stage.judge(emitter)
    enter("–", "subscription disabled under load", times, verdict, emitter)
    assert verdict.duplicates == 0
    for daemon in daemons:
        assert daemon.stop() == 0


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_an_hour_of_load_leaves_memory_descriptors_and_tasks_where_they_were(
    migrated_database: str, receiver: Receiver, tmp_path: Path, enter: Enter, tell: Tell
) -> None:
    installation = watched(tmp_path)
    stage = Stage.on(migrated_database, installation, receiver, tmp_path)
    try:
        daemon = stage.start()
        stage.invite(daemon)
        with stage.load(PER_SECOND) as emitter:
            time.sleep(SOAK_S / 6)  # caches, pools and the allocator's room
            before, began = holding(daemon), time.monotonic()
            time.sleep(SOAK_S * 5 / 6)
            after, hours = holding(daemon), (time.monotonic() - began) / 3600
        verdict = stage.judge(emitter, within_s=60)
        ((dead,),) = stage.scene.rows(DEAD_ROWS)
        tell(f"before {before}, after {after}, {hours:.2f} h later; dead rows at most {dead}")
        enter("C19", f"none, for {SOAK_S / 60:g} min", 0, verdict, emitter)
        assert verdict.duplicates == 0
        assert (after.rss_kb - before.rss_kb) / hours < SLOPE_KB
        assert after.tasks <= before.tasks * 1.5
        assert after.descriptors <= before.descriptors * 1.5
        assert daemon.stop() == 0
    finally:
        installation.end()
