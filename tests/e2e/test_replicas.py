"""Two daemons on one database: they share the work, and each goes on alone when the other dies, freezes or stops."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import pytest

from daemon.store.shards import SHARDS
from tests.e2e import oracle
from tests.e2e.figures import Tell
from tests.e2e.load import PER_SECOND, PER_SUBSCRIPTION, customers, subscribe_all
from tests.e2e.scene import Scene
from tests.e2e.shares import owned
from tests.e2e.traffic import Emitter, Receiver, open_emitter
from tests.support.daemon_process import DaemonProcess, Installation, until

HALF: Final = SHARDS // 2
LOW, HIGH = customers(range(HALF), 4), customers(range(HALF, SHARDS), 4)
DELAYS_MS: Final = (5, 50, 200, 400) * 2
FROZEN_S: Final = 8.0


@dataclass
class Pair:
    """Two daemons that share the shards. `elder_session` is the backend that holds the elder's locks."""

    scene: Scene
    installation: Installation
    emitter: Emitter
    elder: DaemonProcess
    younger: DaemonProcess
    elder_session: int

    def owned(self) -> dict[int, set[int]]:
        """The shards by the backend that holds their locks."""
        return owned(self.scene)

    def elder_claims(self) -> set[oracle.Claim]:
        """What is claimed in the elder's shards, for an elder that is frozen: once its last statements have ended."""
        shards = self.owned()[self.elder_session]
        before: set[oracle.Claim] | None = None
        while (claims := self.scene.claims(shards)) != before:
            before = claims
            time.sleep(0.05)
        return claims

    def wait_until_younger_owns_all(self, within_s: float) -> None:
        def look() -> bool:
            now = self.owned()
            return self.elder_session not in now and [len(shards) for shards in now.values()] == [SHARDS]

        until(look, within_s=within_s, what="the other daemon owns all shards")


def wait_until_shared(scene: Scene) -> dict[int, set[int]]:
    def look() -> dict[int, set[int]]:
        now = owned(scene)
        return now if [len(shards) for shards in now.values()] == [HALF, HALF] else {}

    return until(look, within_s=15, what="half of the shards for each daemon")


@pytest.fixture
def pair(migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path) -> Iterator[Pair]:
    """Under load from before the second one joins, until `emitter.finish`."""
    scene = Scene(migrated_database, receiver)
    scene.open()
    elder = installation.start(scene.url)
    subscribe_all(scene, elder, [*LOW, *HIGH], DELAYS_MS)
    (elder_session,) = until(lambda: list(owned(scene)), within_s=5, what="an owner")
    with open_emitter(tmp_path, scene.url, [*LOW, *HIGH], per_second=PER_SECOND) as emitter:
        emitter.go_on()
        younger = installation.start(scene.url)
        wait_until_shared(scene)
        yield Pair(scene, installation, emitter, elder, younger, elder_session)


def test_replicas_that_join_and_stop_under_load_share_the_shards_and_cause_no_duplicate(pair: Pair, tell: Tell) -> None:
    for daemon in (pair.elder, pair.younger):
        assert httpx.get(f"{daemon.api}/readyz").json()["shards"] == HALF
    pair.emitter.go_on(50)
    began = time.monotonic()
    assert pair.elder.stop() == 0
    stopped_s = time.monotonic() - began
    pair.wait_until_younger_owns_all(within_s=2)
    pair.emitter.go_on(50)
    pair.emitter.finish()
    verdict = oracle.judge(pair.scene)
    tell(f"{verdict.duties} deliveries; stopped under load in {stopped_s:.2f} s; duplicates: {verdict.duplicates}")
    assert verdict.duplicates == 0
    assert verdict.interrupted == set()
    assert pair.younger.stop() == 0


def test_the_events_of_a_replica_that_was_killed_are_sent_again_within_two_seconds(pair: Pair, tell: Tell) -> None:
    pair.emitter.go_on(50)
    pair.elder.signal(signal.SIGSTOP)  # so that what it had in flight can be read at leisure
    claims = pair.elder_claims()
    seen = len(pair.scene.receiver.receipts())
    killed_at = pair.elder.kill()
    again = until(
        lambda: [r for r in pair.scene.receiver.receipts_from(seen) if (*r.duty, r.attempt - 1) in claims],
        within_s=10,
        what="a redelivery",
    )
    pair.wait_until_younger_owns_all(within_s=2)
    pair.emitter.go_on(50)
    pair.emitter.finish()
    verdict = oracle.judge(pair.scene)
    in_flight = received(pair.scene) & claims
    last = max(r.at for r in pair.scene.receiver.receipts() if (*r.duty, r.attempt - 1) in claims)
    tell(f"{len(claims)} claims cut off, {len(in_flight)} of them received; duplicates: {verdict.duplicates}")
    tell(f"sent again {again[0].at - killed_at:.2f} s after the kill, the last {last - killed_at:.2f} s after it")
    assert again[0].at - killed_at < 2
    assert verdict.interrupted == claims
    assert verdict.repeated <= in_flight
    assert verdict.duplicates <= PER_SUBSCRIPTION * len(pair.scene.subscribed)
    assert in_flight, "nothing was in flight: the test shows nothing"
    assert pair.younger.stop() == 0


def test_a_replica_that_was_frozen_comes_back_without_harm(pair: Pair, tell: Tell) -> None:
    pair.emitter.go_on(50)
    frozen_at = time.monotonic()
    pair.elder.signal(signal.SIGSTOP)
    claims = pair.elder_claims()
    pair.wait_until_younger_owns_all(within_s=15)
    taken_s = time.monotonic() - frozen_at
    time.sleep(max(FROZEN_S - taken_s, 0))  # the fault's own length
    pair.elder.signal(signal.SIGCONT)
    pair.scene.thawed += 1
    wait_until_shared(pair.scene)
    pair.emitter.go_on(50)
    pair.emitter.finish()
    verdict = oracle.judge(pair.scene)
    in_flight = received(pair.scene) & claims
    late = {claim for claim in verdict.repeated if verdict.logged[claim] == "delivered"}
    tell(f"taken over after {taken_s:.2f} s; {len(claims)} claims, {len(in_flight)} of them received")
    tell(f"duplicates: {verdict.duplicates}; late results that found their place in the log: {len(late)}")
    assert verdict.repeated <= in_flight
    # Its own late results replace what the other wrote of the same attempts, and touch nothing else.
    assert verdict.interrupted <= claims
    assert verdict.duplicates <= PER_SUBSCRIPTION * len(pair.scene.subscribed)
    assert in_flight, "nothing was in flight: the test shows nothing"
    assert pair.elder.stop() == 0
    assert pair.younger.stop() == 0


def received(scene: Scene) -> set[oracle.Claim]:
    return {(*r.duty, r.attempt) for r in scene.receiver.receipts()}
