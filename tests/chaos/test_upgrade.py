"""From one version to the next, as docs/operations.md says: the schema first, then one replica after the other."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import httpx
import pytest

from daemon.store.migrate import known
from tests.chaos import former_version
from tests.chaos.figures import Enter
from tests.chaos.stage import Stage
from tests.e2e.figures import Tell
from tests.e2e.held_socket import asking, daemons_on
from tests.e2e.shares import wait_until_shared
from tests.e2e.traffic import Emitter, Receiver
from tests.support.daemon_process import COMMAND, DaemonProcess, Installation, until
from tests.support.migrated import drop
from tests.support.postgres import fresh_database

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

REPLICAS: Final = 2
PER_SECOND: Final = 100
PAUSE_S: Final = 0.05
MIGRATED_S: Final = 60.0
"""A migration that has to wait for emitters gives up soon, and is run again."""
PATIENT: Final = [f"patient-{n}" for n in range(8)]
"""Customers, some in the hands of either replica, whose endpoint takes so long that a stop has to wait for it."""
PATIENT_MS: Final = 2000
"""Versions up to the migration 0014 lose their shards after 2.4 s of a drain, and then duplicates are theirs."""
VERSIONS: Final = "SELECT version FROM dealix.schema_migrations ORDER BY 1"


@pytest.fixture
def empty_database(embedded_server: str) -> Iterator[str]:
    url = fresh_database(embedded_server)
    yield url
    drop(url)


class Site:
    """One place of a replica: the socket that the service manager holds, and the daemons that get it."""

    def __init__(self, directory: Path, sealing_key: str, stack: ExitStack) -> None:
        self.socket = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        self.former = self._installation(directory / "former", sealing_key, former_version.COMMAND)
        self.present = self._installation(directory / "present", sealing_key, COMMAND)
        for installation in (self.former, self.present):
            stack.callback(installation.end)

    @property
    def port(self) -> int:
        return self.socket.getsockname()[1]

    def complaints(self) -> list[str]:
        return [*self.former.complaints(), *self.present.complaints()]

    def _installation(self, directory: Path, sealing_key: str, command: Sequence[str]) -> Installation:
        directory.mkdir(parents=True)
        made = daemons_on(self.socket, directory, command)
        made.sealing_key = sealing_key
        return made


def test_an_upgrade_with_the_schema_first_loses_doubles_and_refuses_nothing(
    empty_database: str, receiver: Receiver, tmp_path: Path, enter: Enter, tell: Tell
) -> None:
    environ = {"PYTHONPATH": former_version.check_out(tmp_path)}
    key = Installation(tmp_path).sealing_key
    assert key is not None
    with ExitStack() as stack:
        sites = [Site(tmp_path / f"site-{n}", key, stack) for n in range(REPLICAS)]
        former = [site.former.start(empty_database, environ=environ) for site in sites]
        stage = Stage.on(empty_database, sites[0].present, receiver, tmp_path)
        stage.invite(former[0])
        for name in PATIENT:
            stage.scene.subscribe(former[0], name, delay_ms=PATIENT_MS)
        before = [version for (version,) in stage.scene.rows(VERSIONS)]
        wait_until_shared(stage.scene, REPLICAS)
        with stage.load(PER_SECOND) as emitter, ExitStack() as clients:
            asked = [clients.enter_context(asking(site.port, pause_s=PAUSE_S)) for site in sites]
            emitter.go_on(200)
            until(lambda: migrated(sites[0].present, empty_database), within_s=MIGRATED_S, what="the schema of today")
            after = [version for (version,) in stage.scene.rows(VERSIONS)]
            emitter.go_on(200)
            ready = [readiness(one) for one in former]
            overlaps = [replace(one, site, stage, emitter) for one, site in zip(former, sites, strict=True)]
            wait_until_shared(stage.scene, REPLICAS)
        verdict = stage.judge(emitter)
        requests = [one for some in asked for one in some]
        longest_s = max(one.took_s for one in requests)
        new = sorted(set(after) - set(before))
        tell(f"migrations {new} under load; {len(requests)} requests, the longest took {longest_s:.2f} s")
        tell(f"with them, /readyz of the version before: {ready}")  # of those from before this was asked for, 503
        fault = f"upgrade by {len(new)} migration(s), sockets held, {len(requests)} requests meanwhile"
        enter("C15", fault, REPLICAS, verdict, emitter)
        assert after == [m.version for m in known()]
        assert new, "the schema was that of today: the test shows nothing"
        assert any(overlaps), "no old replica was still draining when its successor was ready"
        assert [r for r in requests if r.end != 200] == []
        assert emitter.events("failed") == {}
        assert verdict.duplicates == 0
        assert verdict.interrupted == set()
        assert [one.stop() for site in sites for one in site.present.processes] == [0] * REPLICAS
        assert [said for site in sites for said in site.complaints()] == []


def replace(former: DaemonProcess, site: Site, stage: Stage, emitter: Emitter) -> bool:
    """Put another in the place of one; whether the one was still draining when the other was ready."""
    present = site.present.start(stage.scene.url, ready=False)
    present.wait_for("raw_notify.open")  # the last thing that it says before it is ready
    events = {stage.scene.emit(name) for name in PATIENT}
    receipts = stage.scene.receiver.receipts
    until(lambda: events <= {r.event_id for r in receipts()}, within_s=20, what="requests that take long")
    former.signal(signal.SIGTERM)
    present.wait_for("daemon.ready")
    is_draining = former.running()
    emitter.go_on(100)
    assert former.wait() == 0
    emitter.go_on(100)
    return is_draining


def migrated(installation: Installation, url: str) -> bool:
    """Whether `dealix migrate` of the present version ended well."""
    return installation.run("migrate", database_url=url).code == 0


def readiness(daemon: DaemonProcess) -> int:
    return httpx.get(f"{daemon.api}/readyz", timeout=10).status_code
