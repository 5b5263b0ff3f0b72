"""Starting, reloading and stopping: what the operator and the service manager see of it."""

from __future__ import annotations

import signal
import time
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from daemon.embedded_postgres import running_url
from daemon.embedded_postgres.processes import members
from tests.e2e import oracle
from tests.e2e.figures import Tell
from tests.e2e.scene import Scene
from tests.e2e.service_manager import open_service_manager
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import Installation, until
from tests.support.own_server import OwnServer
from tests.support.postgres import fresh_database

ANY_OWN_SERVER = pytest.mark.parametrize("own_cluster", ["18"], indirect=True)


@pytest.fixture
def scene(migrated_database: str, receiver: Receiver) -> Scene:
    made = Scene(migrated_database, receiver)
    made.open()
    return made


def test_an_idle_daemon_is_ready_when_it_says_so_and_stops_at_once(
    migrated_database: str, installation: Installation, tell: Tell
) -> None:
    daemon = installation.start(migrated_database)
    answer = httpx.get(f"{daemon.api}/readyz")
    assert (answer.status_code, answer.json()["listening"]) == (200, True)
    until(lambda: httpx.get(f"{daemon.api}/readyz").json()["shards"] == 64, within_s=5, what="all shards")
    began = time.monotonic()
    assert daemon.stop() == 0
    took_s = time.monotonic() - began
    tell(f"ready {daemon.ready_after_s:.2f} s after the start; stopped in {took_s:.2f} s")
    assert took_s < 3
    assert daemon.lines()[-1]["event"] == "daemon.stopped"


def test_a_stop_waits_for_the_request_in_flight_and_records_it(scene: Scene, installation: Installation) -> None:
    daemon = installation.start(scene.url)
    slow = scene.subscribe(daemon, delay_ms=2000)
    scene.emit()
    (request,) = scene.receiver.wait_for(1)
    code = daemon.stop()
    took_s = time.monotonic() - request.at
    assert code == 0
    assert 2 <= took_s < 7
    assert scene.rows("SELECT attempt, outcome, status_code FROM dealix.attempts") == [(1, "delivered", 200)]
    daemon = installation.start(scene.url)
    scene.emit()  # what arrives after this one would have come before it
    scene.receiver.wait_for(2, slow.name)
    assert oracle.judge(scene).duplicates == 0
    assert daemon.stop() == 0


def test_a_hangup_reloads_the_log_level_and_names_what_needs_a_restart(
    scene: Scene, installation: Installation, tmp_path: Path
) -> None:
    config = tmp_path / "dealix.toml"
    config.write_text('[log]\nlevel = "info"\n')
    daemon = installation.start(scene.url, config=config)
    refusing = scene.subscribe(daemon, status=404)

    config.write_text('[log]\nlevel = "warning"\n[delivery]\ntimeout_s = 5\nmax_slow = 100\n')
    daemon.signal(signal.SIGHUP)
    said = daemon.wait_for("config.reloaded", within_s=5)
    assert sorted(said["needs_restart"]) == ["delivery.max_slow", "delivery.timeout_s"]

    config.write_text('[log]\nlevel = "error"\n[delivery]\ntimeout = 5\n')
    daemon.signal(signal.SIGHUP)
    assert "delivery.timeout" in daemon.wait_for("config.refused", within_s=5)["faults"]
    scene.emit()
    daemon.wait_for("attempt.failed", within_s=5)  # a warning: the refused file's level does not hold

    config.write_text('[log]\nlevel = "error"\n')
    daemon.signal(signal.SIGHUP)
    httpx.get(f"{daemon.api}/healthz")  # the loop that answers has seen the signal before
    scene.emit()
    scene.receiver.wait_for(2, refusing.name)
    until(lambda: scene.rows("SELECT count(*) FROM dealix.attempts") == [(2,)], within_s=5, what="both in the log")
    assert daemon.stop() == 0
    assert len(daemon.lines("attempt.failed")) == 1
    assert daemon.lines("daemon.stopped") == []


def test_an_address_that_is_taken_is_a_clear_error(migrated_database: str, installation: Installation) -> None:
    first = installation.start(migrated_database)
    address = first.api.removeprefix("http://")
    second = installation.start(migrated_database, ready=False, environ={"DEALIX_API__BIND": address})
    assert second.wait() == 78
    assert f"api.bind: cannot listen on {address}: Address already in use" in second.text()
    assert "Traceback" not in second.text()
    assert second.lines("shards.gained") == []
    assert httpx.get(f"{first.api}/readyz").status_code == 200
    assert first.stop() == 0


def test_a_killed_daemon_leaves_no_postgres_behind_and_the_next_delivers_what_was_emitted(
    installation: Installation, receiver: Receiver, tell: Tell
) -> None:
    cluster = installation.data_dir / "pg18"
    daemon = installation.start()
    url = running_url(installation.data_dir)
    assert url is not None
    scene = Scene(url, receiver)
    scene.open()
    slow = scene.subscribe(daemon, delay_ms=1000)
    # A new cluster's first checkpoint writes all of its files. This is about the later ones, so it has that behind it.
    scene.rows("CHECKPOINT")
    assert members(cluster)
    event_id = scene.emit()
    receiver.wait_for(1, slow.name)
    killed_at = daemon.kill()
    until(lambda: not members(cluster), within_s=2, what="no Postgres is left")
    gone_s = time.monotonic() - killed_at

    daemon = installation.start()
    first, second = receiver.wait_for(2, slow.name)
    assert (first.duty, second.duty) == ((event_id, slow.name), (event_id, slow.name))
    verdict = oracle.judge(scene)
    assert verdict.interrupted == {(event_id, slow.name, 1)}
    assert daemon.stop() == 0
    assert not members(cluster)
    tell(f"Postgres gone {gone_s:.3f} s after the kill, redelivered {second.at - killed_at:.2f} s after it")


@ANY_OWN_SERVER
def test_the_service_manager_hears_ready_only_when_all_is_up_and_is_never_left_waiting(
    own_server: OwnServer, installation: Installation, tmp_path: Path
) -> None:
    url = fresh_database(own_server.url)
    own_server.stop()
    with open_service_manager(tmp_path) as manager:
        environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": 1_500_000}
        daemon = installation.start(url, ready=False, environ=environ)
        daemon.wait_for("daemon.waiting_for_database")
        manager.wait_for("WATCHDOG=1", 2)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("config.reloaded")
        manager.wait_for("WATCHDOG=1", len(manager.times("WATCHDOG=1")) + 1)
        assert manager.times("READY=1") == []
        own_server.start()
        ready_at = manager.wait_for("READY=1")
        answer = httpx.get(f"{daemon.api}/readyz")
        assert (answer.status_code, answer.json()["listening"]) == (200, True)
        daemon.signal(signal.SIGHUP)
        assert manager.wait_for("RELOADING=1") < manager.wait_for("READY=1", 2)
        assert manager.times(f"STATUS=serving {daemon.api}") == manager.times("READY=1")
        manager.wait_for("WATCHDOG=1", len(manager.times("WATCHDOG=1")) + 2)
        assert daemon.stop() == 0
        assert ready_at < manager.wait_for("STOPPING=1")
        pings = manager.times("WATCHDOG=1")
        assert max(later - earlier for earlier, later in pairwise(pings)) < 1.5
