"""The disk under Postgres is full: nothing is sent that cannot be recorded, and work goes on when there is room."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import psycopg
import pytest
from typing_extensions import override

from daemon.embedded_postgres import running_url
from daemon.embedded_postgres.processes import members
from tests.chaos.disk import Ballast, small_disk
from tests.chaos.figures import Enter
from tests.e2e import oracle
from tests.e2e.figures import Tell
from tests.e2e.load import PER_SECOND, customers, subscribe_all
from tests.e2e.prober import probing
from tests.e2e.scene import AUTHORIZED, Scene
from tests.e2e.traffic import Receiver, open_emitter
from tests.support.daemon_process import Installation, until
from tests.support.own_server import OwnServer
from tests.support.postgres import fresh_database

CUSTOMERS: Final = customers()
DISK: Final = "150m"
SETTLE_S: Final = 2.0
FULL_S: Final = 3.0
EMIT: Final = "/api/v1/ecosystem/events/emit"


@pytest.fixture
def disk() -> Iterator[Path]:
    with small_disk(DISK) as place:
        yield place


class DataOnSmallDisk(OwnServer):
    """Its tables are on the small disk, its WAL is not: it refuses writes and lives."""

    wal: Path

    @override
    def _make(self) -> subprocess.Popen[bytes]:
        self.wal = Path(tempfile.mkdtemp(prefix="dealix-wal-"))
        os.chown(self.wal, self._account.uid, self._account.gid)
        self.wal.rmdir()
        return super()._make()

    @override
    def _more(self) -> tuple[str, ...]:
        return ("-X", str(self.wal))


@pytest.fixture
def server(disk: Path) -> Iterator[DataOnSmallDisk]:
    home = disk / "home"
    home.mkdir()
    made = DataOnSmallDisk(home, None)
    try:
        made.start()
        yield made
    finally:
        if made.running():
            made.kill()
        shutil.rmtree(made.wal)


def unrecorded(scene: Scene) -> set[oracle.Claim]:
    """Requests that the receiver has and the log has not."""
    received = {(*r.duty, r.attempt) for r in scene.receiver.receipts()}
    return received - oracle.logged(scene).keys()


@pytest.mark.chaos
@pytest.mark.timeout(120)
def test_with_a_full_disk_nothing_is_sent_that_cannot_be_recorded(
    disk: Path,
    server: DataOnSmallDisk,
    installation: Installation,
    receiver: Receiver,
    tmp_path: Path,
    tell: Tell,
    enter: Enter,
) -> None:
    scene = Scene(fresh_database(server.url), receiver)
    daemon = installation.start(scene.url, environ={"DEALIX_DATABASE__POOL_SIZE": 4})
    scene.open()
    subscribe_all(scene, daemon, CUSTOMERS)
    ballast = Ballast(disk)
    with open_emitter(tmp_path, scene.url, CUSTOMERS, per_second=PER_SECOND) as emitter:
        emitter.go_on(50)
        ballast.fill()
        until(lambda: emitter.events("failed"), within_s=30, what="a refused emit")
        until(lambda: daemon.lines("results.waiting_for_database"), within_s=30, what="results that wait")
        time.sleep(SETTLE_S)
        ballast.fill()
        before = len(receiver.receipts())
        time.sleep(FULL_S)
        sent_meanwhile = len(receiver.receipts()) - before
        waiting = unrecorded(scene)
        unclaimed = waiting - scene.claims() - oracle.logged(scene).keys()
        answer = httpx.post(
            f"{daemon.api}{EMIT}",
            json={"customer_id": CUSTOMERS[0], "event_type": "deal.won", "payload": {"filler": "x" * 50_000}},
            headers=AUTHORIZED,
            timeout=10,
        )
        freed_at = time.monotonic()
        ballast.drop()
        until(lambda: not waiting - oracle.logged(scene).keys(), within_s=10, what="the waiting results")
        recorded_s = time.monotonic() - freed_at
        emitter.go_on(100)
        emitter.finish()
    verdict = oracle.judge(scene)
    tell(f"full: {len(waiting)} results waited, {sent_meanwhile} requests in the next {FULL_S:g} s")
    tell(
        f"room again: recorded after {recorded_s:.2f} s; {verdict.duties} deliveries, duplicates: {verdict.duplicates}"
    )
    enter("C11", "disk of the data full", 1, verdict, emitter, recovery_s=recorded_s)
    assert waiting, "nothing was in hand when the disk was full: the test shows nothing"
    assert unclaimed == set(), "sent without a claim on record"
    assert sent_meanwhile == 0
    assert answer.status_code == 503
    assert recorded_s < 5
    assert verdict.duplicates == 0
    assert daemon.running()
    assert daemon.stop() == 0


@pytest.mark.chaos
@pytest.mark.timeout(180)
def test_an_embedded_postgres_that_dies_of_a_full_disk_comes_back_when_there_is_room(
    disk: Path, tmp_path: Path, receiver: Receiver, tell: Tell, enter: Enter
) -> None:
    installation = Installation(tmp_path)
    data = disk / "data"
    ballast = Ballast(disk)
    try:
        daemon = installation.start(environ={"DEALIX_DATA_DIR": str(data), "DEALIX_DATABASE__POOL_SIZE": 4})
        url = running_url(data)
        assert url is not None
        scene = Scene(url, receiver)
        scene.open()
        subscribe_all(scene, daemon, CUSTOMERS)
        with (
            open_emitter(tmp_path, scene.url, CUSTOMERS, per_second=PER_SECOND) as emitter,
            probing(daemon.api) as prober,
        ):
            emitter.go_on(50)
            ballast.fill()
            until(lambda: use_up_the_wal(scene), within_s=30, what="a PANIC")
            until(lambda: daemon.lines("embedded_postgres.down"), within_s=30, what="a Postgres that stays down")
            down_at = time.monotonic()
            time.sleep(FULL_S)
            freed_at = time.monotonic()
            seen = len(receiver.receipts())
            ballast.drop()
            until(lambda: len(receiver.receipts()) > seen, within_s=20, what="a delivery")
            resumed_s = receiver.receipts()[seen].at - freed_at
            emitter.go_on(100)
            emitter.finish()
        verdict = oracle.judge(scene)
        away = prober.between(down_at, freed_at - 1)
        tell(f"down, the API answered {sorted({a.status for a in away})} within {max(a.took_s for a in away):.2f} s")
        tell(f"deliveries went on {resumed_s:.2f} s after there was room; duplicates: {verdict.duplicates}")
        enter("C11", "disk full, Postgres dead of it", 1, verdict, emitter, recovery_s=resumed_s)
        assert {a.status for a in away} == {503}
        assert resumed_s < 8
        assert verdict.duplicates == 0
        assert daemon.running()
        assert daemon.stop() == 0
        others = [line for line in installation.complaints() if json.loads(line)["event"] != "embedded_postgres.down"]
        assert others == []
    finally:
        installation.end()
        until(lambda: not members(data / "pg18"), within_s=10, what="no Postgres is left")


def use_up_the_wal(scene: Scene) -> bool:
    """Begin segment after segment of WAL; True once the server died of it."""
    try:
        scene.rows("SELECT pg_logical_emit_message(true, 'x', repeat('x', 1000)), pg_switch_wal()")
    except psycopg.OperationalError:
        return True
    return False
