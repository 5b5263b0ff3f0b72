"""The database hangs up, crashes, or stops answering: the daemon lives, and what committed arrives."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from daemon.actors.fence import FRESH_S
from tests.e2e import oracle
from tests.e2e.figures import Tell
from tests.e2e.load import PER_SECOND, customers, subscribe_all
from tests.e2e.prober import Answer, probing
from tests.e2e.scene import Scene
from tests.e2e.service_manager import open_service_manager
from tests.e2e.traffic import Emitter, Receiver, open_emitter
from tests.support.daemon_process import DaemonProcess, Installation, until
from tests.support.own_server import OwnServer
from tests.support.postgres import fresh_database

CUSTOMERS: Final = customers()
QUICK_MS: Final = (2, 3, 5, 8, 12, 20)
UNAVAILABLE_S: Final = 2.0
ASKING_S: Final = 0.3
"""What a busy machine may add to an answer before the one who asked has it in hand."""
ON_DEBIANS: Final = pytest.mark.parametrize(
    "own_cluster", [pytest.param("15", marks=pytest.mark.external_postgres)], indirect=True
)
ON_THE_EMBEDDED: Final = pytest.mark.parametrize("own_cluster", ["18"], indirect=True)


def begin(
    url: str, installation: Installation, receiver: Receiver, environ: Mapping[str, str | int] | None = None
) -> tuple[Scene, DaemonProcess]:
    """A daemon on a database of its own, with everybody subscribed."""
    daemon = installation.start(url, environ={"DEALIX_DATABASE__POOL_SIZE": 4, **(environ or {})})
    scene = Scene(url, receiver)
    scene.open()
    subscribe_all(scene, daemon, CUSTOMERS, QUICK_MS)
    return scene, daemon


def latencies(scene: Scene, emitter: Emitter, since: float) -> list[float]:
    """Seconds from COMMIT to the first request, of each delivery whose event was committed since then."""
    committed = emitter.events("committed")
    first: dict[tuple[str, str], float] = {}
    for r in scene.receiver.receipts():
        first.setdefault(r.duty, r.at)
    return [at - committed[e] for (e, _), at in first.items() if e in committed and committed[e] >= since]


def test_sessions_that_are_terminated_delay_deliveries_by_less_than_two_seconds(
    migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path, tell: Tell
) -> None:
    scene, daemon = begin(migrated_database, installation, receiver)
    gaps: list[float] = []
    with open_emitter(tmp_path, scene.url, CUSTOMERS, per_second=PER_SECOND) as emitter:
        emitter.go_on()
        began = time.monotonic()
        for name in [*["dealix owner"] * 5, "dealix%"]:
            gaps.append(terminate(scene, emitter, name))
            emitter.go_on(60)
            oracle.wait_until_arrived(scene)
        emitter.finish()
    verdict = oracle.judge(scene)
    late = max(latencies(scene, emitter, began))
    tell(f"next delivery after each termination: {', '.join(f'{gap:.2f} s' for gap in gaps)}")
    tell(f"latest of {verdict.duties} deliveries: {late:.2f} s after its COMMIT; duplicates: {verdict.duplicates}")
    assert max(gaps) < 2
    assert late < 2
    assert verdict.duplicates == 0
    assert len(daemon.lines("ownership.lost")) == 6
    assert daemon.stop() == 0


def terminate(scene: Scene, emitter: Emitter, name: str) -> float:
    """End the daemon's sessions of that name; seconds until an event arrived that was committed after that."""
    pids = until(lambda: scene.sessions(name), within_s=5, what="a session to terminate")
    seen = len(scene.receiver.receipts())
    at = time.monotonic()
    scene.rows("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])
    return until(lambda: newly_committed(scene, emitter, seen, at), within_s=5, what="a delivery") - at


def newly_committed(scene: Scene, emitter: Emitter, seen: int, since: float) -> float:
    """When the first event arrived that was committed since; 0 if none has yet."""
    committed = emitter.events("committed")
    return next((r.at for r in scene.receiver.receipts_from(seen) if committed.get(r.event_id, 0) > since), 0.0)


@ON_DEBIANS
def test_a_postgres_that_crashes_takes_nothing_with_it(
    own_server: OwnServer, installation: Installation, receiver: Receiver, tmp_path: Path, tell: Tell
) -> None:
    scene, daemon = begin(fresh_database(own_server.url), installation, receiver)
    with open_emitter(tmp_path, scene.url, CUSTOMERS, per_second=PER_SECOND) as emitter, probing(daemon.api) as prober:
        emitter.go_on()
        own_server.kill()
        killed_at = time.monotonic()
        until(lambda: len(refusals(prober.between(killed_at, time.monotonic()))) >= 4, within_s=20, what="503s")
        starting_at = time.monotonic()
        own_server.start()
        back_at = time.monotonic()
        seen = len(receiver.receipts())
        resumed = until(lambda: newly_committed(scene, emitter, seen, back_at), within_s=10, what="a delivery")
        emitter.go_on(100)
        emitter.finish()
    verdict = oracle.judge(scene)
    away = [a for a in prober.between(killed_at, starting_at) if a.at + a.took_s < starting_at]
    tell(f"away, the API answered {sorted({a.status for a in away})} within {max(a.took_s for a in away):.2f} s")
    tell(f"deliveries went on {resumed - back_at:.2f} s after it was back; duplicates: {verdict.duplicates}")
    assert {a.status for a in away} == {503}
    assert max(a.took_s for a in away) < UNAVAILABLE_S + ASKING_S
    assert resumed - back_at < 5
    assert verdict.duplicates == 0
    assert daemon.running()
    assert daemon.stop() == 0


def refusals(answers: list[Answer]) -> list[Answer]:
    return [a for a in answers if a.status == 503]


@ON_THE_EMBEDDED
def test_a_postgres_that_freezes_stops_the_sending_and_nothing_else(
    own_server: OwnServer, installation: Installation, receiver: Receiver, tmp_path: Path, tell: Tell
) -> None:
    with open_service_manager(tmp_path) as manager:
        scene, daemon = begin(
            fresh_database(own_server.url),
            installation,
            receiver,
            environ={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": 3_000_000},
        )
        with (
            open_emitter(tmp_path, scene.url, CUSTOMERS, per_second=PER_SECOND) as emitter,
            probing(daemon.api) as prober,
        ):
            emitter.go_on()
            frozen_at = time.monotonic()
            own_server.freeze()
            time.sleep(8)  # the fault's own length
            thawed_at = time.monotonic()
            own_server.thaw()
            seen = len(receiver.receipts())
            resumed = until(lambda: newly_committed(scene, emitter, seen, thawed_at), within_s=15, what="a delivery")
            emitter.go_on(100)
            emitter.finish()
        verdict = oracle.judge(scene)
        pings = [at for at in manager.times("WATCHDOG=1") if at > frozen_at - 3]
    away = prober.between(frozen_at + 0.1, thawed_at - UNAVAILABLE_S)
    silence = max(later - earlier for earlier, later in pairwise(pings))
    meanwhile = [r.at - frozen_at for r in receiver.receipts() if frozen_at < r.at < thawed_at]
    tell(f"frozen, the API answered {sorted({a.status for a in away})} within {max(a.took_s for a in away):.2f} s")
    tell(f"{len(meanwhile)} requests after the freeze, the last {max(meanwhile, default=0):.2f} s after it")
    tell(f"deliveries went on {resumed - thawed_at:.2f} s after the thaw; duplicates: {verdict.duplicates}")
    tell(f"watchdog fed at the latest after {silence:.2f} s")
    assert {a.status for a in away} == {503}
    assert max(a.took_s for a in away) < UNAVAILABLE_S + ASKING_S
    assert max(meanwhile, default=0) < FRESH_S + 0.5
    assert silence < 3
    assert resumed - thawed_at < 5
    assert verdict.duplicates == 0
    assert daemon.stop() == 0
