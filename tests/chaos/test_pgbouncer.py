"""A PgBouncer in transaction mode before the pool: each transaction may meet another session of the server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.figures import Enter
from tests.e2e import oracle
from tests.e2e.figures import Tell
from tests.e2e.load import customers, subscribe_all
from tests.e2e.scene import Scene
from tests.e2e.traffic import Receiver, open_emitter
from tests.support.daemon_process import ROOT, DaemonProcess, Installation, until
from tests.support.own_server import OwnServer
from tests.support.pgbouncer import PROGRAM, PgBouncer, open_pgbouncer
from tests.support.postgres import fresh_database

CUSTOMERS: Final = customers()
PER_SECOND: Final = 200
AS_OPERATIONS_SAYS: Final = "SET enable_seqscan = off; SET jit = off"
LEFT_BEHIND: Final = """
    SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND a.datname = current_database() AND a.application_name <> 'dealix owner'
"""


@pytest.fixture(scope="module", autouse=True)
def _pgbouncer_is_there() -> None:
    if not PROGRAM.exists():
        (pytest.fail if "CI" in os.environ else pytest.skip)("Debian's pgbouncer is not installed")


@pytest.fixture
def bouncer(own_server: OwnServer) -> Iterator[PgBouncer]:
    with open_pgbouncer(own_server, sessions=2, connect_query=AS_OPERATIONS_SAYS) as opened:
        yield opened


def begin(
    own_server: OwnServer, bouncer: PgBouncer, installation: Installation, receiver: Receiver
) -> tuple[Scene, DaemonProcess]:
    """A daemon whose pools go through PgBouncer, and whose dedicated session does not."""
    direct = fresh_database(own_server.url)
    environ = {"DEALIX_DATABASE__DIRECT_URL": direct, "DEALIX_DATABASE__POOL_SIZE": 8}
    daemon = installation.start(bouncer.url(direct), environ=environ)
    scene = Scene(direct, receiver)
    scene.open()
    subscribe_all(scene, daemon, CUSTOMERS)
    return scene, daemon


ON_ONE: Final = pytest.mark.parametrize("own_cluster", ["18"], indirect=True)


@ON_ONE
def test_everything_arrives_once_through_pgbouncer_and_no_session_keeps_a_trace(
    own_server: OwnServer,
    bouncer: PgBouncer,
    installation: Installation,
    receiver: Receiver,
    tmp_path: Path,
    tell: Tell,
    enter: Enter,
) -> None:
    scene, daemon = begin(own_server, bouncer, installation, receiver)
    began = time.monotonic()
    with open_emitter(tmp_path, scene.url, CUSTOMERS, per_second=PER_SECOND) as emitter:
        emitter.go_on(400)
        emitter.finish()
    verdict = oracle.judge(scene)
    tell(f"{verdict.duties} deliveries in {time.monotonic() - began:.1f} s; duplicates: {verdict.duplicates}")
    shared = [row for row in bouncer.shown("SERVERS") if row["database"] == scene.url.rpartition("/")[2]]
    clients = [row for row in bouncer.shown("CLIENTS") if row["database"] == scene.url.rpartition("/")[2]]
    tell(f"{len(clients)} connections of the daemon on {len(shared)} sessions")
    enter("–", "none, through PgBouncer", 1, verdict, emitter)
    assert verdict.duplicates == 0
    assert len(clients) > len(shared) > 1, "no session was shared: the test shows nothing"
    # The housekeeping locks and sets, which must not happen on a session that others get next.
    until(lambda: scene.sessions("dealix janitor"), within_s=30, what="housekeeping in a session of its own")
    until(lambda: not scene.sessions("dealix janitor"), within_s=30, what="its end")
    assert scene.rows(LEFT_BEHIND) == [(0,)]
    assert {row for _ in range(20) for row in Scene(bouncer.url(scene.url), receiver).rows("SHOW lock_timeout")} == {
        ("0",)
    }
    assert daemon.stop() == 0


@pytest.mark.chaos
@ON_ONE
def test_a_pgbouncer_that_is_killed_and_comes_back_costs_nothing_but_time(
    own_server: OwnServer,
    bouncer: PgBouncer,
    installation: Installation,
    receiver: Receiver,
    tmp_path: Path,
    tell: Tell,
    enter: Enter,
) -> None:
    scene, daemon = begin(own_server, bouncer, installation, receiver)
    with open_emitter(tmp_path, scene.url, CUSTOMERS, per_second=PER_SECOND) as emitter:
        emitter.go_on(100)
        bouncer.kill()
        until(lambda: daemon.lines("role.waiting_for_database"), within_s=10, what="the daemon to notice")
        bouncer.start()
        back_at = time.monotonic()
        seen = len(receiver.receipts())
        until(lambda: len(receiver.receipts()) > seen, within_s=10, what="a delivery")
        resumed_s = receiver.receipts()[seen].at - back_at
        emitter.go_on(100)
        emitter.finish()
    assert daemon.stop() == 0
    unanswered = scene.claims()  # they come back when their lease ends, or with the next owner of their shard
    daemon = installation.start(bouncer.url(scene.url), environ={"DEALIX_DATABASE__DIRECT_URL": scene.url})
    verdict = oracle.judge(scene)
    tell(f"{verdict.duties} deliveries; went on {resumed_s:.2f} s after it was back; duplicates: {verdict.duplicates}")
    tell(f"claims whose answer was lost: {len(unanswered)}")
    enter("–", "SIGKILL of PgBouncer", 1, verdict, emitter, recovery_s=resumed_s)
    assert resumed_s < 5
    assert verdict.duplicates == 0
    assert verdict.interrupted == unanswered
    assert daemon.stop() == 0


@ON_ONE
def test_a_pooler_without_a_direct_url_is_named(
    own_server: OwnServer, bouncer: PgBouncer, installation: Installation, receiver: Receiver
) -> None:
    direct = fresh_database(own_server.url)
    daemon = installation.start(bouncer.url(direct), ready=False)
    said = until(
        lambda: [line for line in daemon.lines() if "database.direct_url" in str(line.get("error"))],
        within_s=15,
        what="what is missing",
    )
    assert said[0]["level"] == "warning"
    assert daemon.running()
    assert daemon.stop() == 0
    environ = {"PATH": os.environ["PATH"], "DEALIX_DATABASE__URL": bouncer.url(direct)}
    command = [sys.executable, "-m", "daemon", "migrate"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "database.direct_url" in done.stderr
    assert Scene(direct, receiver).rows("SELECT to_regnamespace('dealix')") == [(None,)]
