"""Endpoints that mean harm and messages that are none: nothing leaks, and whoever is well gets what is theirs."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest

from daemon.actors.delivery import LINGER_S
from daemon.actors.roster import IDLE_LOOK_S
from tests.chaos.figures import Enter
from tests.chaos.stage import Stage
from tests.chaos.watching import Holding, holding, watched
from tests.e2e.figures import Tell
from tests.e2e.load import customers
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import DaemonProcess, Installation, until

pytestmark = pytest.mark.timeout(600)

HOSTILE: Final = customers(number=40)[30:]
BATCH: Final = 100
MORE_TASKS, MORE_DESCRIPTORS, MORE_KB = 2, 4, 4096
ENVIRON: Final = {
    "DEALIX_DELIVERY__RETRY_SCHEDULE_S": "0",
    "DEALIX_DELIVERY__DISABLE_AFTER": 100_000,
    "DEALIX_DELIVERY__BREAKER_AFTER": 100_000,
}
EMIT_MANY: Final = """
    WITH emitted AS (
        SELECT emitted.* FROM generate_series(1, %(count)s) AS n,
            LATERAL dealix.emit(%(customer)s, 'deal.won', json_build_object('n', n)::text) AS emitted)
    INSERT INTO ledger SELECT event_id, %(customer)s, 'deal.won', matched FROM emitted
"""


@pytest.fixture
def watched_installation(tmp_path: Path) -> Iterator[Installation]:
    installation = watched(tmp_path)
    yield installation
    installation.end()
    assert installation.complaints() == []


def settle(daemon: DaemonProcess) -> Holding:
    """What it holds once actors and idle connections have gone."""
    time.sleep(LINGER_S + 2 * IDLE_LOOK_S)
    before = holding(daemon)
    while True:
        time.sleep(3)
        now = holding(daemon)
        if now.tasks >= before.tasks and now.descriptors >= before.descriptors:
            return now
        before = now


def malformed(chance: random.Random, number: int) -> str:
    """A message for the raw channel that is no event; each another one, since the server merges equal ones."""
    good = {"customer_id": "acme", "event_type": "deal.won", "payload": {"n": number}}
    return chance.choice([
        f"{number}",
        f"{number} {{",
        "[" * 3000 + f"{number}",
        json.dumps(good)[: -1 - number % 20] + chance.choice(']"x'),
        json.dumps({**good, "customer_id": "../" * (number % 30 + 1)}),
        json.dumps({**good, "customer_id": number}),
        json.dumps({**good, "event_type": "Deal Won"}),
        json.dumps({**good, "event_id": "a b" + "x" * (number % 200)}),
        json.dumps({**good, "more": number}),
        json.dumps({**good, "payload": f"{number}"}),
        json.dumps({**good, "payload": [number]}),
        json.dumps({**good, "event_type": f"no.such.type{number}"}),
        json.dumps({"customer_id": "acme"})[:-1] + f', "payload": {number}',
        chance.randbytes(number % 3000 + 1).decode("latin-1").replace("\0", "0"),
    ])  # fmt: skip


def notify(url: str, count: int) -> None:
    chance = random.Random(count)
    with psycopg.connect(url, autocommit=True) as connection:
        for begin in range(0, count, BATCH):
            messages = [malformed(chance, n) for n in range(begin, begin + BATCH)]
            connection.execute(
                "SELECT pg_notify('dealix_emit', left(m, 3000)) FROM unnest(%s::text[]) AS m", [messages]
            )


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.chaos)])
def test_hostile_answers_and_malformed_messages_leave_nothing_behind(
    migrated_database: str,
    watched_installation: Installation,
    receiver: Receiver,
    tmp_path: Path,
    count: int,
    enter: Enter,
    tell: Tell,
) -> None:
    stage = Stage.on(migrated_database, watched_installation, receiver, tmp_path, ENVIRON)
    daemon = stage.start()
    stage.invite(daemon, sick=False)
    for name in HOSTILE:
        stage.scene.subscribe(daemon, name, status="hostile", healthy=False)
    names = {s.name for s in stage.scene.subscribed if not s.healthy}
    holdings: list[Holding] = []
    with stage.load(100) as emitter:
        for part in (count // 5, count):  # the first fills what is kept on purpose: caches, pools, the allocator's room
            seen = sum(r.name in names for r in receiver.receipts())
            for name in HOSTILE:
                stage.scene.rows(EMIT_MANY, {"count": part // len(HOSTILE), "customer": name})
            notify(stage.scene.url, part)
            until(
                lambda part=part, seen=seen: sum(r.name in names for r in receiver.receipts()) - seen >= part,
                within_s=300,
                what="all hostile endpoints asked",
            )
            emitter.go_on(100)
            if part == count:
                emitter.finish()
            holdings.append(settle(daemon) if part == count else holding(daemon))
    verdict = stage.judge(emitter)
    before, after = holdings
    tell(f"before {before}, after {after}")
    enter("–", f"{count} hostile answers, {count} malformed NOTIFYs", 2 * count, verdict, emitter)
    assert stage.scene.rows("SELECT count(*) FROM dealix.events WHERE customer_id = 'acme'") == [(0,)]
    assert verdict.duplicates == 0
    assert after.tasks - before.tasks <= MORE_TASKS
    assert after.descriptors - before.descriptors <= MORE_DESCRIPTORS
    assert after.rss_kb - before.rss_kb <= MORE_KB
    assert daemon.stop() == 0
