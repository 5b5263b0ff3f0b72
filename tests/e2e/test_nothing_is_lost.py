"""What committed arrives, what rolled back does not, whenever the daemon is down or killed."""

from __future__ import annotations

import random
import time
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest

from tests.e2e import oracle
from tests.e2e.figures import Tell
from tests.e2e.load import PER_SECOND, PER_SUBSCRIPTION, customers, subscribe_all
from tests.e2e.scene import Scene
from tests.e2e.traffic import Receiver, open_emitter
from tests.support.daemon_process import DaemonProcess, Installation, until

CUSTOMERS: Final = customers()


def test_what_committed_while_the_daemon_was_down_arrives_after_its_start(
    migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path, tell: Tell
) -> None:
    scene = Scene(migrated_database, receiver)
    scene.open()
    daemon = installation.start(migrated_database)
    subscribe_all(scene, daemon, CUSTOMERS)
    assert daemon.stop() == 0
    with open_emitter(tmp_path, migrated_database, CUSTOMERS, per_second=400) as emitter:
        emitter.go_on(100)
        emitter.finish()
    assert receiver.receipts() == []
    started_at = time.monotonic()
    daemon = installation.start(migrated_database)
    verdict = oracle.judge(scene)
    took_s = receiver.receipts()[-1].at - started_at
    assert verdict.duplicates == 0
    assert verdict.interrupted == set()
    assert len(emitter.events("rolled back")) > 5
    assert emitter.events("rolled back").keys().isdisjoint(r.event_id for r in receiver.receipts())
    assert daemon.stop() == 0
    tell(f"{verdict.duties} deliveries that waited: all out {took_s:.2f} s after the start of the process")


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("database", "kills"),
    [pytest.param("debian_database", 10, marks=pytest.mark.external_postgres), ("migrated_database", 2)],
)
def test_kills_under_load_lose_nothing_and_repeat_only_what_was_in_flight(
    request: pytest.FixtureRequest,
    database: str,
    kills: int,
    installation: Installation,
    receiver: Receiver,
    tmp_path: Path,
    tell: Tell,
) -> None:
    scene = Scene(request.getfixturevalue(database), receiver)
    scene.open()
    daemon = installation.start(scene.url)
    subscribe_all(scene, daemon, CUSTOMERS)
    with open_emitter(tmp_path, scene.url, CUSTOMERS, per_second=PER_SECOND) as emitter:
        emitter.go_on(50)
        cut_off, gaps = kill_and_start_again(scene, installation, kills)
        emitter.go_on()
        emitter.finish()
    verdict = oracle.judge(scene)

    in_flight = {(r.event_id, r.name, r.attempt) for r in receiver.receipts()} & cut_off
    tell(f"{verdict.duties} deliveries, {len(emitter.events('rolled back'))} rolled-back events, {kills} kills")
    tell(f"cut off: {len(cut_off)} claims, {len(in_flight)} of them received; duplicates: {verdict.duplicates}")
    for gap in gaps:
        tell(gap)
    assert emitter.events("rolled back").keys().isdisjoint(r.event_id for r in receiver.receipts())
    assert len(emitter.events("rolled back")) > 10 * kills
    assert verdict.interrupted == cut_off, "each attempt whose outcome a kill swallowed is logged as interrupted"
    assert verdict.repeated <= in_flight
    assert verdict.duplicates <= kills * PER_SUBSCRIPTION * len(scene.subscribed)
    assert in_flight, "no kill hit a request in flight: the test shows nothing"
    assert installation.processes[-1].stop() == 0


def kill_and_start_again(scene: Scene, installation: Installation, kills: int) -> tuple[set[oracle.Claim], list[str]]:
    """Kill the daemon so often. What was claimed at the kills, and what each takeover took."""
    chance = random.Random(kills)
    cut_off: set[oracle.Claim] = set()
    gaps: list[str] = []
    for _ in range(kills):
        time.sleep(chance.uniform(0.1, 0.8))  # when a fault comes is chance; what follows is waited for
        killed_at = installation.processes[-1].kill()
        until(lambda: not scene.sessions(), within_s=5, what="the killed daemon's sessions are over")
        claims = scene.claims()
        seen = len(scene.receiver.receipts())
        daemon = installation.start(scene.url)
        gaps.append(takeover(scene, daemon, len(claims), seen, killed_at))
        cut_off |= claims
    return cut_off, gaps


def takeover(scene: Scene, daemon: DaemonProcess, claims: int, seen: int, killed_at: float) -> str:
    """Checks that what a kill cut off was sent again because its shard was gained, not when its lease of 60 s ended."""
    gained = daemon.wait_for("shards.gained")
    assert gained["recovered"] == claims
    gained_at = datetime.fromisoformat(gained["time"]).timestamp() - time.time() + time.monotonic()
    if not claims:
        return "nothing was claimed"
    again = until(
        lambda: [r.at for r in scene.receiver.receipts_from(seen) if r.attempt > 1], within_s=5, what="a redelivery"
    )
    assert again[0] - gained_at < 2.0, f"the first redelivery came {again[0] - gained_at:.2f} s after the shards"
    return (
        f"claims {claims}; from the kill to the shards {gained_at - killed_at:.2f} s, "
        f"from the shards to the first redelivery {again[0] - gained_at:.3f} s"
    )
