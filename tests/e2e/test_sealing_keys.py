"""Sealing keys under running daemons: rotated, dropped, missing, weak; and seals that were moved to another row."""

from __future__ import annotations

import base64
import re
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
import pytest
from stripe import WebhookSignature

from daemon.sealing import KeyRing, key_id_of
from tests.e2e.scene import AUTHORIZED, Scene
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import ROOT, DaemonProcess, Installation, until

BASE: Final = "/api/v1/ecosystem"
OPERATIONS: Final = ROOT / "docs/operations.md"
KEY_IDS: Final = "SELECT DISTINCT encode(substr(secret_sealed, 2, 8), 'hex') FROM dealix.subscriptions ORDER BY 1"
STATE: Final = "SELECT id, version, updated_at, enabled FROM dealix.subscriptions ORDER BY id"


@pytest.fixture
def keyed(installation: Installation) -> Installation:
    """An installation with its keys in the data directory."""
    installation.sealing_key = None
    return installation


@pytest.fixture
def scene(migrated_database: str, receiver: Receiver) -> Scene:
    made = Scene(migrated_database, receiver)
    made.open()
    return made


def subscribe(scene: Scene, daemon: DaemonProcess, name: str, customer_id: str = "acme") -> dict[str, Any]:
    """A subscription as its creation answers it, secret included."""
    asked = {"customer_id": customer_id, "endpoint_url": scene.receiver.url(name)}
    answer = httpx.post(f"{daemon.api}{BASE}/webhooks", json=asked, headers=AUTHORIZED)
    assert answer.status_code == 201
    return answer.json()


def assert_signed(scene: Scene, daemon: DaemonProcess, event_id: str, secret: str, name: str) -> None:
    """The event arrived at the endpoint, and what was sent verifies with the secret that was shown at the creation."""
    until(lambda: event_id in {r.event_id for r in scene.receiver.receipts(name)}, within_s=10, what=f"{event_id}")
    query = "SELECT id FROM dealix.attempts WHERE event_id = %s AND endpoint_url LIKE %s"
    rows = until(lambda: scene.rows(query, [event_id, f"%/{name}/%"]), within_s=10, what="the attempt in the log")
    shown = httpx.get(f"{daemon.api}{BASE}/deliveries/{rows[0][0]}", headers=AUTHORIZED).json()
    sent = {name.lower(): value for name, value in shown["request"]["headers"]}
    assert WebhookSignature.verify_header(shown["request"]["body"].encode(), sent["dealix-signature"], secret)


def key_ids(keyed: Installation) -> list[str]:
    """As `dealix secrets list` would say it, from the file."""
    lines = (keyed.data_dir / "sealing.key").read_text().split()
    return [key_id_of(base64.b64decode(line)).hex() for line in lines]


def test_a_rotation_reaches_running_daemons_and_every_row_and_no_delivery_suffers(
    scene: Scene, keyed: Installation
) -> None:
    first, second = (keyed.start(scene.url) for _ in range(2))
    made = {name: subscribe(scene, first, name, customer) for name, customer in (("a", "acme"), ("b", "globex"))}
    rotated = httpx.post(f"{first.api}{BASE}/webhooks/{made['a']['id']}/rotate-secret", json={}, headers=AUTHORIZED)
    made["a"]["secret"] = rotated.json()["secret"]
    before = scene.rows(STATE)
    (old,) = key_ids(keyed)
    assert scene.rows(KEY_IDS) == [(old,)]

    ended = keyed.run("secrets", "rotate", database_url=scene.url)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("2 subscriptions' secrets were sealed anew")
    new, kept = key_ids(keyed)
    assert kept == old
    assert scene.rows(KEY_IDS) == [(new,)]
    assert scene.rows(
        "SELECT encode(substr(previous_secret_sealed, 2, 8), 'hex') FROM dealix.subscriptions "
        "WHERE previous_secret_sealed IS NOT NULL"
    ) == [(new,)]
    assert scene.rows(STATE) == before  # to customers nothing has changed
    for daemon in (first, second):
        (adopted,) = daemon.lines("sealing_keys.adopted")[-1:]
        assert adopted["seals_with"] == new
        made[daemon.api] = subscribe(scene, daemon, f"after-{daemon.pid}")
    assert scene.rows(KEY_IDS) == [(new,)]

    dropped = keyed.run("secrets", "drop", old, database_url=scene.url)
    assert (dropped.code, dropped.out) == (0, f"{old} is dropped.\n")
    assert key_ids(keyed) == [new]
    for daemon in (first, second):
        until(lambda d=daemon: d.lines("sealing_keys.adopted")[-1]["opens_with"] == [new], within_s=5, what="one key")
    for name, customer_id in (("a", "acme"), ("b", "globex")):
        assert_signed(scene, first, scene.emit(customer_id), made[name]["secret"], name)
    assert (first.stop(), second.stop()) == (0, 0)
    third = keyed.start(scene.url)
    assert_signed(scene, third, scene.emit(), made["a"]["secret"], "a")
    assert third.stop() == 0
    assert all(not d.lines("subscription.secret_unreadable") for d in (first, second, third))


def test_a_rotation_that_is_killed_goes_on_where_it_stopped_and_a_start_between_finds_all_keys(
    scene: Scene, keyed: Installation
) -> None:
    daemon = keyed.start(scene.url)
    made = [subscribe(scene, daemon, f"s{n}") for n in range(5)]
    (old,) = key_ids(keyed)
    with psycopg.connect(scene.url) as holder:
        holder.execute("SELECT FROM dealix.subscriptions WHERE id = %s FOR UPDATE", [made[2]["id"]])
        rotation = subprocess.Popen(
            [sys.executable, "-m", "daemon", "secrets", "rotate"], env=keyed._environ(scene.url), cwd=ROOT
        )
        until(lambda: len(scene.rows(KEY_IDS)) == 2, within_s=20, what="a part is sealed anew")
        second = keyed.run("secrets", "rotate", database_url=scene.url)
        assert (second.code, second.err) == (1, "dealix: another rotation is going on\n")
        rotation.kill()
        rotation.wait(10)
    new, _ = key_ids(keyed)
    assert scene.rows("SELECT count(*) FROM dealix.subscriptions WHERE encode(substr(secret_sealed, 2, 8), 'hex') = %s",
                      [new]) == [(4,)]  # fmt: skip
    assert daemon.stop() == 0
    daemon = keyed.start(scene.url)
    refused = keyed.run("secrets", "drop", old, database_url=scene.url)
    assert refused.code == 1
    assert f"{old} (needed by 1 subscriptions)" in refused.err
    ended = keyed.run("secrets", "rotate", database_url=scene.url)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Going on with a rotation that was not finished.\n1 subscriptions'")
    assert key_ids(keyed) == [new, old]
    assert scene.rows(KEY_IDS) == [(new,)]
    event_id = scene.emit()
    for n in (2, 4):
        assert_signed(scene, daemon, event_id, made[n]["secret"], f"s{n}")
    assert daemon.stop() == 0


def test_nothing_is_sealed_with_a_key_that_a_running_daemon_elsewhere_does_not_hold(
    scene: Scene, keyed: Installation, tmp_path: Path
) -> None:
    here = keyed.start(scene.url)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    shutil.copy(keyed.data_dir / "sealing.key", elsewhere)
    there = keyed.start(scene.url, environ={"DEALIX_DATA_DIR": str(elsewhere)})
    made = subscribe(scene, here, "a")
    (old,) = key_ids(keyed)
    rotate = ("secrets", "rotate", "--wait-s", "2")

    first = keyed.run(*rotate, database_url=scene.url)
    assert (first.code, first.out) == (1, "")
    assert "1 running daemons do not hold the key" in first.err
    assert scene.rows(KEY_IDS) == [(old,)]
    assert key_ids(keyed) == [old]
    shutil.copy(keyed.data_dir / "sealing.key.next", elsewhere)
    second = keyed.run(*rotate, database_url=scene.url)
    assert second.code == 1
    assert "1 running daemons do not seal with the key" in second.err
    shutil.copy(keyed.data_dir / "sealing.key", elsewhere)
    third = keyed.run(*rotate, database_url=scene.url)
    assert (third.code, third.err) == (0, "")
    new, _ = key_ids(keyed)
    assert scene.rows(KEY_IDS) == [(new,)]
    assert not (keyed.data_dir / "sealing.key.next").exists()
    assert_signed(scene, there, scene.emit(), made["secret"], "a")
    assert (here.stop(), there.stop()) == (0, 0)


def test_a_credential_with_two_keys_rotates_to_the_first_one(scene: Scene, installation: Installation) -> None:
    old, new = (base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2))
    installation.sealing_key = old
    daemon = installation.start(scene.url)
    made = subscribe(scene, daemon, "a")
    given = installation.run("secrets", "rotate", "--key-file", "-", stdin=new, database_url=scene.url)
    assert given.code == 2
    assert "put the new key into it, before the old one" in given.err
    installation.sealing_key = f"{new}\n{old}"
    early = installation.run("secrets", "rotate", "--wait-s", "1", database_url=scene.url)
    assert early.code == 1
    assert "1 running daemons do not seal with the key" in early.err
    assert daemon.stop() == 0
    daemon = installation.start(scene.url)
    assert installation.run("secrets", "rotate", database_url=scene.url).code == 0
    installation.sealing_key = new
    assert daemon.stop() == 0
    daemon = installation.start(scene.url)
    assert_signed(scene, daemon, scene.emit(), made["secret"], "a")
    assert daemon.stop() == 0


def test_n98_a_start_without_a_key_that_is_in_use_is_refused_by_the_keys_id_and_what_needs_it(
    scene: Scene, installation: Installation
) -> None:
    daemon = installation.start(scene.url)
    for name in ("a", "b", "c"):
        subscribe(scene, daemon, name)
    assert daemon.stop() == 0
    (old,) = scene.rows(KEY_IDS)[0]
    installation.sealing_key = base64.b64encode(secrets.token_bytes(32)).decode()
    scene.emit()
    refused = installation.start(scene.url, ready=False)
    assert refused.wait() == 78
    assert f"{old} (needed by 3 subscriptions)" in refused.text()
    assert "Traceback" not in refused.text()
    assert scene.receiver.receipts() == []
    checked = installation.run("check", database_url=scene.url)
    assert checked.code == 1
    assert f"{old} (needed by 3 subscriptions)" in checked.out


def test_n98_a_running_daemon_keeps_a_key_in_use_that_is_taken_from_its_file(scene: Scene, keyed: Installation) -> None:
    daemon = keyed.start(scene.url)
    made = subscribe(scene, daemon, "a")
    (old,) = key_ids(keyed)
    path = keyed.data_dir / "sealing.key"
    path.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
    said = daemon.wait_for("sealing_keys.refused")
    assert f"{old} (needed by 1 subscriptions)" in said["reason"]
    assert_signed(scene, daemon, scene.emit(), made["secret"], "a")
    path.write_text("nonsense")
    assert "32 bytes" in daemon.wait_for("sealing_keys.refused", 2)["reason"]
    assert_signed(scene, daemon, scene.emit(), made["secret"], "a")
    assert daemon.stop() == 0


def test_n98_what_needs_a_key_that_a_running_daemon_has_not_is_held_unsigned_until_it_is_given(
    scene: Scene, keyed: Installation
) -> None:
    daemon = keyed.start(scene.url)
    waiting, other = subscribe(scene, daemon, "a"), subscribe(scene, daemon, "b")
    strange = secrets.token_bytes(32)
    seal = KeyRing(strange).seal(waiting["secret"], table="subscriptions", column="secret", row=waiting["id"])
    scene.rows("UPDATE dealix.subscriptions SET secret_sealed = %s WHERE id = %s", [seal, waiting["id"]])
    event_id = scene.emit()
    assert daemon.wait_for("sealing_key.missing")["key_id"] == key_id_of(strange).hex()
    assert_signed(scene, daemon, event_id, other["secret"], "b")
    held = "SELECT count(*) FROM dealix.deliveries WHERE due IS NULL AND attempt = 0"
    until(lambda: scene.rows(held) == [(1,)], within_s=10, what="the delivery is held")
    assert scene.receiver.receipts("a") == []
    assert scene.rows("SELECT DISTINCT enabled FROM dealix.subscriptions") == [(True,)]
    assert len(daemon.lines("sealing_key.missing")) == 1
    with (keyed.data_dir / "sealing.key").open("a") as file:
        file.write(base64.b64encode(strange).decode() + "\n")
    assert_signed(scene, daemon, event_id, waiting["secret"], "a")
    assert daemon.stop() == 0


def test_a_key_that_is_lost_costs_new_secrets_and_no_event(scene: Scene, keyed: Installation) -> None:
    daemon = keyed.start(scene.url)
    made = subscribe(scene, daemon, "a")
    assert daemon.stop() == 0
    event_id = scene.emit()
    (keyed.data_dir / "sealing.key").unlink()
    assert keyed.start(scene.url, ready=False).wait() == 78
    advice = re.search(r"^    (UPDATE dealix\.subscriptions .*?;)$", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL)
    assert advice is not None
    scene.rows(advice[1].encode())
    daemon = keyed.start(scene.url)
    url = f"{daemon.api}{BASE}/webhooks/{made['id']}"
    assert httpx.get(url, headers=AUTHORIZED).json()["disabled_reason"] == "secret_unreadable"
    fresh = httpx.post(f"{url}/rotate-secret", json={}, headers=AUTHORIZED).json()
    assert httpx.patch(url, json={"enabled": True}, headers=AUTHORIZED).status_code == 200
    assert_signed(scene, daemon, event_id, fresh["secret"], "a")
    assert daemon.stop() == 0


def test_n97_a_seal_that_was_copied_to_another_row_disables_that_subscription_alone(
    scene: Scene, installation: Installation
) -> None:
    daemon = installation.start(scene.url)
    robbed, thief = subscribe(scene, daemon, "a"), subscribe(scene, daemon, "b", "globex")
    ((seal,),) = scene.rows("SELECT secret_sealed FROM dealix.subscriptions WHERE id = %s", [robbed["id"]])
    scene.rows("UPDATE dealix.subscriptions SET secret_sealed = %s WHERE id = %s", [seal, thief["id"]])
    scene.emit("globex")
    event_id = scene.emit("acme")
    assert_signed(scene, daemon, event_id, robbed["secret"], "a")
    assert daemon.wait_for("subscription.disabled")["subscription_id"] == thief["id"]
    shown = httpx.get(f"{daemon.api}{BASE}/webhooks/{thief['id']}", headers=AUTHORIZED).json()
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "secret_unreadable")
    assert scene.receiver.receipts("b") == []
    assert daemon.running()
    # The customer mends it: a new secret, enabled again, and what was held arrives.
    fresh = httpx.post(f"{daemon.api}{BASE}/webhooks/{thief['id']}/rotate-secret", json={}, headers=AUTHORIZED).json()
    patch = httpx.patch(f"{daemon.api}{BASE}/webhooks/{thief['id']}", json={"enabled": True}, headers=AUTHORIZED)
    assert patch.status_code == 200
    (held,) = scene.rows("SELECT id FROM dealix.events WHERE customer_id = 'globex'")
    assert_signed(scene, daemon, held[0], fresh["secret"], "b")
    assert daemon.stop() == 0


WEAK: Final = {
    "empty": "",
    "blank": "  ",
    "short": "c2hvcnQ=",
    "zeros": base64.b64encode(bytes(32)).decode(),
    "typed": base64.b64encode(b"change-me-change-me-change-me-00").decode(),
}


@pytest.mark.parametrize("key", WEAK.values(), ids=WEAK)
@pytest.mark.parametrize("kind", ["variable", "credential"])
def test_n90_a_start_with_an_empty_or_weak_sealing_key_is_refused(
    migrated_database: str, installation: Installation, tmp_path: Path, key: str, kind: str
) -> None:
    environ: dict[str, str | int] = {}
    if kind == "variable":
        installation.sealing_key = key
    else:
        installation.sealing_key = None
        credentials = tmp_path / "credentials"
        credentials.mkdir()
        (credentials / "sealing_key").write_text(key)
        environ["CREDENTIALS_DIRECTORY"] = str(credentials)
    refused = installation.start(migrated_database, environ=environ, ready=False)
    assert refused.wait() == 78
    assert "sealing_key" in refused.text()
    assert "Traceback" not in refused.text()
    assert not key.strip() or key not in refused.text()
    assert not (installation.data_dir / "sealing.key").exists()


def test_a_reload_says_nothing_of_keys(scene: Scene, installation: Installation) -> None:
    daemon = installation.start(scene.url)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("config.reloaded")
    assert daemon.stop() == 0
    assert installation.sealing_key is not None
    assert installation.sealing_key not in daemon.text()
