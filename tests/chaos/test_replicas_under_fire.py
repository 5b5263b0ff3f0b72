"""Several daemons on one database: killed, frozen, stopped and replaced while an application emits."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from daemon.store.shards import shard_of
from tests.chaos.figures import Enter
from tests.chaos.stage import Stage, sleep_until
from tests.e2e import oracle
from tests.e2e.load import PER_SUBSCRIPTION
from tests.e2e.shares import SHARED_S, owned, wait_until_shared
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import ROOT, DaemonProcess, Installation, until

pytestmark = pytest.mark.timeout(400)
CHAOS: Final = pytest.mark.chaos

KILLED_S: Final = 2.0
FROZEN_S: Final = 15.0
FREEZE_S: Final = 10.0


@dataclass
class Fleet:
    """Daemons on one stage, each with the backend that holds its locks."""

    stage: Stage
    sessions: dict[int, DaemonProcess] = field(default_factory=dict[int, DaemonProcess])

    def launch(self) -> DaemonProcess:
        """One more."""
        daemon = self.stage.start()
        self.acquaint(daemon)
        return daemon

    def acquaint(self, daemon: DaemonProcess) -> None:
        """Find the session of a daemon that has a new one."""

        def new() -> list[int]:
            return [pid for pid in self.stage.scene.sessions("dealix owner") if pid not in self.sessions]

        self.sessions[until(new, within_s=SHARED_S, what="the daemon's session")[0]] = daemon

    def session(self, daemon: DaemonProcess) -> int:
        return next(pid for pid, one in self.sessions.items() if one is daemon)

    def forget(self, daemon: DaemonProcess) -> None:
        del self.sessions[self.session(daemon)]

    def wait_until_shared(self, within_s: float = SHARED_S) -> float:
        """Until each has its share of the shards; how long that took."""
        began = time.monotonic()
        wait_until_shared(self.stage.scene, len(self.sessions), within_s=within_s)
        return time.monotonic() - began

    def claims_of(self, daemon: DaemonProcess) -> set[oracle.Claim]:
        """What is claimed in the shards of a frozen daemon: once its last statements have ended."""
        shards = owned(self.stage.scene).get(self.session(daemon), set())
        before: set[oracle.Claim] | None = None
        while (claims := self.stage.scene.claims(shards)) != before:
            before = claims
            time.sleep(0.05)
        return claims

    def redelivery(self, claims: set[oracle.Claim], since: float, within_s: float) -> float | None:
        """Seconds until the first of the claims that were received came again; None if there was none."""
        if not claims & self.stage.received():
            return None
        again = until(
            lambda: [r.at for r in self.stage.scene.receiver.receipts() if (*r.duty, r.attempt - 1) in claims],
            within_s=within_s,
            what="a redelivery",
        )
        return again[0] - since

    def kill(self, victim: DaemonProcess) -> tuple[set[oracle.Claim], float | None]:
        """Kill one and replace it; what was claimed, and how long the first redelivery took."""
        victim.signal(signal.SIGSTOP)  # so that what it had in flight can be read at leisure
        claims = self.claims_of(victim)
        self.forget(victim)
        again_s = self.redelivery(claims, victim.kill(), 10)
        self.launch()
        return claims, again_s

    def freeze(self, victim: DaemonProcess) -> tuple[set[oracle.Claim], float | None]:
        """Freeze one for FREEZE_S; what was claimed, and how long the first redelivery by another took."""
        at = time.monotonic()
        victim.signal(signal.SIGSTOP)
        claims = self.claims_of(victim)
        self.forget(victim)
        again_s = self.redelivery(claims, at, 20)
        sleep_until(at + FREEZE_S)
        victim.signal(signal.SIGCONT)
        self.stage.scene.thawed += 1
        self.acquaint(victim)
        return claims, again_s


def fleet_on(
    url: str, installation: Installation, receiver: Receiver, directory: Path, *, number: int, sick: bool
) -> Fleet:
    fleet = Fleet(Stage.on(url, installation, receiver, directory))
    fleet.stage.invite(fleet.launch(), sick=sick)
    for _ in range(number - 1):
        fleet.launch()
    return fleet


def test_the_shards_are_split_anew_whenever_a_replica_comes_or_goes(
    migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path, enter: Enter
) -> None:
    fleet = fleet_on(migrated_database, installation, receiver, tmp_path, number=1, sick=False)
    cut_off: set[oracle.Claim] = set()
    took: list[float] = []
    with fleet.stage.load() as emitter:
        for _ in range(2):
            fleet.launch()
            took.append(fleet.wait_until_shared())
        first, second, _ = fleet.sessions.values()
        fleet.forget(first)
        assert first.stop() == 0
        took.append(fleet.wait_until_shared())
        second.signal(signal.SIGSTOP)
        cut_off = fleet.claims_of(second)
        fleet.forget(second)
        second.kill()
        took.append(fleet.wait_until_shared())
    verdict = fleet.stage.judge(emitter)
    enter("C14", "replicas join, stop, die", 4, verdict, emitter, bound=f"claimed by the dead: {len(cut_off)}",
          recovery_s=max(took))  # fmt: skip
    assert verdict.repeated <= cut_off
    assert verdict.interrupted <= cut_off
    assert installation.processes[-1].stop() == 0


@CHAOS
@pytest.mark.parametrize(("fault", "bound_s"), [("kill", KILLED_S), ("freeze", FROZEN_S)])
def test_three_replicas_under_fire(
    migrated_database: str,
    installation: Installation,
    receiver: Receiver,
    tmp_path: Path,
    fault: str,
    bound_s: float,
    enter: Enter,
) -> None:
    """Six faults, and after each pair one of the others is stopped in good order and replaced."""
    fleet = fleet_on(migrated_database, installation, receiver, tmp_path, number=3, sick=True)
    chance, times = random.Random(fault), 6
    cut_off: set[oracle.Claim] = set()
    took: list[float] = []
    with fleet.stage.load() as emitter:
        for n in range(times):
            fleet.wait_until_shared()
            emitter.go_on(200)
            victim = chance.choice(list(fleet.sessions.values()))
            claims, again_s = fleet.kill(victim) if fault == "kill" else fleet.freeze(victim)
            cut_off |= claims
            took += [] if again_s is None else [again_s]
            if n % 2:
                fleet.wait_until_shared()
                other = chance.choice(list(fleet.sessions.values()))
                fleet.forget(other)
                assert other.stop() == 0
                fleet.launch()
        fleet.wait_until_shared()
    verdict = fleet.stage.judge(emitter)
    in_flight = fleet.stage.received() & cut_off
    case, what = ("C14", "SIGKILL") if fault == "kill" else ("C3", f"freeze for {FREEZE_S:g} s")
    bound = f"in flight at the faults: {len(in_flight)}"
    enter(case, f"{what} of one of three replicas", times, verdict, emitter, bound=bound, recovery_s=max(took))
    assert verdict.repeated <= in_flight
    assert verdict.interrupted <= cut_off
    assert verdict.duplicates <= times * PER_SUBSCRIPTION * len(fleet.stage.scene.subscribed)
    assert max(took) < bound_s
    for daemon in fleet.sessions.values():
        assert daemon.stop() == 0


@CHAOS
def test_a_rolling_upgrade_with_the_old_ones_draining(
    migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path, enter: Enter
) -> None:
    fleet, times = fleet_on(migrated_database, installation, receiver, tmp_path, number=2, sick=True), 6
    with fleet.stage.load() as emitter:
        for _ in range(times):
            emitter.go_on(200)
            migrated = subprocess.run(
                [*installation.command[:-1], "migrate"],
                env=environ_of(installation, fleet.stage.scene.url),
                cwd=ROOT,
                capture_output=True,
                check=False,
            )
            assert migrated.returncode == 0, migrated.stderr
            old = next(iter(fleet.sessions.values()))
            fleet.launch()
            old.signal(signal.SIGTERM)
            fleet.forget(old)
            emitter.go_on(100)
            assert old.wait() == 0
            fleet.wait_until_shared()
    verdict = fleet.stage.judge(emitter)
    enter("C15", "replica replaced, the old one draining", times, verdict, emitter)
    assert verdict.duplicates == 0
    assert verdict.interrupted == set()
    for daemon in fleet.sessions.values():
        assert daemon.stop() == 0


def environ_of(installation: Installation, url: str) -> Mapping[str, str]:
    assert installation.sealing_key is not None
    return {
        "DEALIX_DATABASE__URL": url,
        "DEALIX_SEALING_KEY": installation.sealing_key,
        "DEALIX_DATA_DIR": str(installation.data_dir),
    }


@CHAOS
def test_housekeeping_goes_on_when_the_one_that_does_it_is_killed(
    migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path, enter: Enter
) -> None:
    fleet = Fleet(Stage.on(migrated_database, installation, receiver, tmp_path))
    keeper = fleet.launch()
    until(lambda: fleet.stage.scene.sessions("dealix janitor"), within_s=20, what="a keeper of the house")
    killed_at = keeper.kill()
    assert fleet.stage.scene.rows(DAYS)[0][0] < 90, "the house was kept already: the test shows nothing"
    fleet.forget(keeper)
    fleet.stage.invite(fleet.launch(), sick=False)
    with fleet.stage.load(100) as emitter:
        until(lambda: fleet.stage.scene.rows(DAYS)[0][0] >= 90, within_s=150, what="partitions for 90 days")
        took_s = time.monotonic() - killed_at
    verdict = fleet.stage.judge(emitter)
    bound = f"interrupted: {len(verdict.interrupted)}"
    enter("C14", "the one that keeps house killed", 1, verdict, emitter, bound=bound, recovery_s=took_s)
    assert verdict.repeated <= verdict.interrupted
    assert installation.processes[-1].stop() == 0


DAYS: Final = """
    SELECT count(*) FROM pg_inherits WHERE inhparent = 'dealix.events'::regclass AND NOT inhdetachpending
"""


@CHAOS
def test_the_twentieth_failure_disables_across_kills_and_replicas(
    migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path, enter: Enter
) -> None:
    """One request at a time, so that none is in flight when the count is full."""
    environ = {
        "DEALIX_DELIVERY__BREAKER_AFTER": 20,
        "DEALIX_DELIVERY__PER_SUBSCRIPTION": 1,
        "DEALIX_DELIVERY__RETRY_SCHEDULE_S": "0,1,1,1,1",
    }
    fleet, kills = Fleet(Stage.on(migrated_database, installation, receiver, tmp_path, environ)), 5
    scene = fleet.stage.scene
    daemon = fleet.launch()
    fleet.launch()
    scene.open()
    failing = scene.subscribe(daemon, status=500, delay_ms=50, healthy=False)
    for _ in range(40):
        scene.emit()
    for n in range(kills):
        until(lambda n=n: len(receiver.receipts()) > 3 * (n + 1), within_s=20, what="three more failures")
        holder = next(pid for pid, shards in owned(scene).items() if shard_of("acme") in shards)
        victim = fleet.sessions[holder]
        fleet.forget(victim)
        victim.kill()
        fleet.launch()
    until(lambda: scene.rows(STATE, [failing.id])[0][0] is False, within_s=40, what="a disabling")
    time.sleep(1.5)  # whatever wrongly goes on shows by then
    verdict = oracle.judge(scene)
    failed = [outcome for outcome in verdict.logged.values() if outcome not in {"interrupted", "delivered"}]
    enter("–", "SIGKILL among 20 failures, counted on", kills, verdict)
    assert scene.rows(STATE, [failing.id]) == [(False, "consecutive_failures")]
    assert len(failed) == 20
    assert len(receiver.receipts()) <= 20 + kills


STATE: Final = "SELECT enabled, disabled_reason FROM dealix.subscriptions WHERE id = %s"
