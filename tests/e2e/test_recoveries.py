"""A bulk replay outlives the daemon that works on it, and moves with its shard."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx

from daemon.store.shards import SHARDS
from tests.e2e.load import customers
from tests.e2e.scene import API_S, AUTHORIZED, Scene, Subscribed
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import DaemonProcess, Installation, until

EVENTS: Final = 300
ON_THEIR_WAY: Final = 4
"""Deliveries of one recovery at a time: half of delivery.per_subscription."""
(MOVING,) = customers(range(SHARDS // 2, SHARDS), 1)
"""A customer in the half of the shards that a second daemon gets."""
EMIT: Final = """
    SELECT count(*) FROM generate_series(1, %s) AS n
    CROSS JOIN LATERAL dealix.emit(%s, 'deal.won', '{"n": ' || n || '}')
"""


def asked(daemon: DaemonProcess, method: str, path: str, body: object = None) -> dict[str, Any]:
    url = f"{daemon.api}/api/v1/ecosystem{path}"
    answer = httpx.request(method, url, json=body, headers=AUTHORIZED, timeout=API_S)
    assert answer.is_success, answer.text
    return answer.json()


def begin(scene: Scene, daemon: DaemonProcess, *, delay_ms: int) -> tuple[str, Subscribed]:
    """A recovery of events that were emitted before their subscription was made. Its endpoint takes so long."""
    scene.open()
    scene.rows(EMIT, (EVENTS, MOVING))
    hook = scene.subscribe(daemon, MOVING, delay_ms=delay_ms)
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    begun = asked(daemon, "POST", f"/webhooks/{hook.id}/recover", {"since": since, "status": "missed"})
    assert (begun["queued"], begun["state"]) == (EVENTS, "running")
    return begun["id"], hook


def ended(daemon: DaemonProcess, recovery_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = asked(daemon, "GET", f"/recoveries/{recovery_id}")
        return found if found["state"] != "running" else None

    found = until(look, within_s=40, what="the end of the recovery")
    assert found is not None
    return found


def check_all_came(receiver: Receiver, hook: Subscribed, *, twice: int) -> None:
    """Every event, with the same bytes each time, and at most so many of them a second time."""
    receipts = receiver.receipts(hook.name)
    times = Counter(receipt.event_id for receipt in receipts)
    assert len(times) == EVENTS
    assert len({(receipt.event_id, receipt.sha256) for receipt in receipts}) == EVENTS
    assert sum(times.values()) - EVENTS <= twice
    assert {(event_id, hook.name) for event_id in times} <= receiver.answered()


def test_after_a_sigkill_a_recovery_goes_on_where_it_was(
    migrated_database: str, installation: Installation, receiver: Receiver
) -> None:
    daemon = installation.start(migrated_database)
    scene = Scene(migrated_database, receiver)
    recovery_id, hook = begin(scene, daemon, delay_ms=5)
    receiver.wait_for(60, hook.name)
    daemon.kill()
    assert len(receiver.receipts(hook.name)) < EVENTS
    again = installation.start(migrated_database)
    found = ended(again, recovery_id)
    assert (found["state"], found["queued"], found["done"], found["failed"]) == ("finished", EVENTS, EVENTS, 0)
    check_all_came(receiver, hook, twice=ON_THEIR_WAY)
    assert daemon.lines("recovery.started")[0]["recovery_id"] == recovery_id
    assert again.wait_for("recovery.finished")["done"] == EVENTS


def test_a_recovery_moves_to_the_daemon_that_gets_its_shard_and_back_when_that_one_dies(
    migrated_database: str, installation: Installation, receiver: Receiver
) -> None:
    elder = installation.start(migrated_database)
    scene = Scene(migrated_database, receiver)
    recovery_id, hook = begin(scene, elder, delay_ms=150)  # 11 s in all: another daemon starts meanwhile
    receiver.wait_for(20, hook.name)
    younger = installation.start(migrated_database)
    younger.wait_for("shards.gained")
    seen = len(receiver.receipts(hook.name))
    receiver.wait_for(seen + 40, hook.name, within_s=25)
    assert scene.rows("SELECT state FROM dealix.recoveries") == [("running",)]
    younger.kill()
    found = ended(elder, recovery_id)
    assert (found["state"], found["done"], found["failed"]) == ("finished", EVENTS, 0)
    check_all_came(receiver, hook, twice=ON_THEIR_WAY)
