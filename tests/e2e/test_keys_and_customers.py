"""Keys that end on every daemon at once, and customers that go while daemons deliver."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest

from tests.e2e.scene import Scene
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import DaemonProcess, Installation, until

BASE: Final = "/api/v1/ecosystem"
TABLES: Final = (
    "SELECT relname FROM pg_class WHERE relnamespace = 'dealix'::regnamespace AND relkind IN ('r', 'p') "
    "AND NOT relispartition AND relname NOT IN ('schema_migrations', 'event_types', 'event_type_details', 'ledger')"
)


@pytest.fixture
def scene(migrated_database: str, receiver: Receiver) -> Scene:
    made = Scene(migrated_database, receiver)
    made.open()
    return made


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """One for all requests: making one costs more than a daemon's answer."""
    with httpx.Client(trust_env=False, timeout=20) as made:
        yield made


def ask(client: httpx.Client, daemon: DaemonProcess, key: str, **query: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    return client.get(f"{daemon.api}{BASE}/webhooks", headers=headers, params=query).status_code


def tables_with(scene: Scene, *marks: str) -> set[str]:
    """In which tables a row still has one of these texts."""
    tables = [name for (name,) in scene.rows(TABLES)]
    looks = [f"SELECT '{name}' WHERE EXISTS (SELECT FROM dealix.{name} t WHERE t::text ~ %(mark)s)" for name in tables]
    return {name for (name,) in scene.rows(" UNION ALL ".join(looks).encode(), {"mark": "|".join(marks)})}


def test_n88_a_revoked_key_gets_no_further_request_in_on_any_replica(
    scene: Scene, installation: Installation, client: httpx.Client
) -> None:
    daemons = [installation.start(scene.url) for _ in range(2)]
    key = installation.run("keys", "create", "--customer", "acme", database_url=scene.url).out.strip()
    short = installation.run("keys", "create", "--ops", "--expires-in-days", "1", database_url=scene.url).out.strip()
    for daemon in daemons * 3:
        assert ask(client, daemon, key) == 200
    (key_id,) = scene.rows("SELECT id FROM dealix.api_keys WHERE customer_id = 'acme'")[0]
    used = "SELECT last_used_at > now() - interval '1 minute' FROM dealix.api_keys WHERE id = %s"
    assert scene.rows(used, [key_id]) == [(True,)]
    assert installation.run("keys", "revoke", key_id, database_url=scene.url).code == 0
    assert [ask(client, daemon, key) for daemon in daemons] == [401, 401]  # the very next one, on each

    assert [ask(client, daemon, short, customer_id="a") for daemon in daemons] == [200, 200]
    scene.rows("UPDATE dealix.api_keys SET expires_at = now() WHERE expires_at IS NOT NULL")
    assert [ask(client, daemon, short) for daemon in daemons] == [401, 401]
    assert [daemon.stop() for daemon in daemons] == [0, 0]


def test_a_customer_is_purged_under_traffic_and_what_is_on_its_way_ends_quietly(
    scene: Scene, installation: Installation, client: httpx.Client
) -> None:
    daemons = [installation.start(scene.url) for _ in range(2)]
    slow = scene.subscribe(daemons[0], "acme", delay_ms=1500)
    dead = scene.subscribe(daemons[0], "acme", status=500)
    other = scene.subscribe(daemons[1], "globex")
    key = installation.run("keys", "create", "--customer", "acme", database_url=scene.url).out.strip()
    for number in range(40):
        scene.emit("acme", data={"mark-acme": number})
        scene.emit("globex", data={"n": number})
    scene.receiver.wait_for(3, slow.name)
    scene.receiver.wait_for(5, dead.name)  # then its breaker opens
    assert {"events", "deliveries", "attempts", "daily_stats"} <= tables_with(scene, "acme", slow.id, dead.id)

    began = time.monotonic()
    ended = installation.run("customers", "purge", "acme", "--yes", "--json", database_url=scene.url)
    took_s = time.monotonic() - began
    assert (ended.code, ended.err) == (0, "")
    receipt: dict[str, Any] = json.loads(ended.out)
    rows = receipt["rows"]
    assert receipt["total"] == sum(rows.values())
    assert {"api_keys": 1, "subscriptions": 2, "subscription_health": 2, "events": 40}.items() <= rows.items()
    assert rows["attempts"] > 0
    sent = len(scene.receiver.receipts(slow.name)) + len(scene.receiver.receipts(dead.name))
    assert tables_with(scene, "acme", slow.id, dead.id) == set()

    # Nobody else noticed, nothing more of it is sent, nothing of it comes back.
    scene.emit("globex", data={"n": 99})
    scene.receiver.wait_for(41, other.name)
    time.sleep(2)
    assert len(scene.receiver.receipts(slow.name)) + len(scene.receiver.receipts(dead.name)) == sent
    assert len(scene.receiver.receipts(other.name)) == 41
    assert [ask(client, daemon, key) for daemon in daemons] == [401, 401]
    until(lambda: scene.rows("SELECT count(*) FROM dealix.deliveries") == [(0,)], within_s=5, what="no duty is left")
    assert tables_with(scene, "acme", slow.id, dead.id) == set()
    assert [daemon.stop() for daemon in daemons] == [0, 0]
    assert took_s < 40


def test_a_customer_is_purged_with_no_daemon_beside(scene: Scene, installation: Installation) -> None:
    daemon = installation.start(scene.url)
    gone = scene.subscribe(daemon, "acme", delay_ms=3000)
    scene.emit("acme")
    scene.receiver.wait_for(1, gone.name)
    daemon.kill()  # its claim stays behind, with a minute of lease
    scene.emit("acme")
    ended = installation.run("customers", "purge", "acme", "--yes", "--json", database_url=scene.url)
    assert json.loads(ended.out)["rows"] == {
        "deliveries": 1,
        "events": 2,
        "outbox": 1,
        "subscription_health": 1,
        "subscriptions": 1,
    }
    assert tables_with(scene, "acme", gone.id) == set()
    daemon = installation.start(scene.url)
    daemon.wait_for("shards.gained")
    time.sleep(1)
    assert len(scene.receiver.receipts()) == 1
    assert daemon.stop() == 0
