"""One of two replicas has a clock that jumps under it: what is sent, counted and disabled does not go by it.

Its signatures do carry its own time, since there is no other to carry. So the judge takes a signature for fresh that
was made within 5 s by the receiver's clock, or by that clock moved as the test has moved the replica's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Final

import pytest

from daemon.store.shards import shard_of
from tests.chaos.figures import Enter
from tests.chaos.stage import Stage
from tests.e2e.oracle import STALE_S
from tests.e2e.shares import wait_until_shared
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import Installation, until

LIBRARY: Final = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
SHARED_MEMORY: Final = Path("/dev/shm")
JUMPS_S: Final = (3600, -7200)
PER_SECOND: Final = 100
SOON_S: Final = 10.0
"""The library looks into its file once a second."""
DISABLE_AFTER: Final = 20
ENVIRON: Final = {
    "DEALIX_DELIVERY__DISABLE_AFTER": DISABLE_AFTER,
    "DEALIX_DELIVERY__BREAKER_AFTER": DISABLE_AFTER,
    "DEALIX_DELIVERY__RETRY_SCHEDULE_S": "0,3600",
}
"""Nothing holds the failures up, and each is that of another event."""
STATE: Final = "SELECT id, disabled_reason FROM dealix.subscriptions WHERE NOT enabled"


class Clock:
    """The wall clock of whatever is started with `environ`; the monotonic one and the times of files stay true."""

    def __init__(self, library: Path, directory: Path) -> None:
        self._file = directory / "clock"
        self.environ: Mapping[str, str | int] = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": 1,
            "DONT_FAKE_MONOTONIC": 1,
            "NO_FAKE_STAT": 1,
        }
        self.set_ahead(0)

    def set_ahead(self, seconds: int) -> None:
        """So far ahead of the true one, within a second or two."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.replace(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    if LIBRARY is None:
        pytest.skip("libfaketime is not installed: apt-get install libfaketime")
    return Clock(LIBRARY, tmp_path)


@pytest.fixture(autouse=True)
def _nothing_stays_in_shared_memory() -> Iterator[None]:
    """The library leaves a page and a semaphore for each process that was killed."""
    before = set(SHARED_MEMORY.glob("*faketime_*"))
    yield
    for left in set(SHARED_MEMORY.glob("*faketime_*")) - before:
        left.unlink(missing_ok=True)


def customer_in(shards: Collection[int]) -> str:
    """One whose events are in these shards."""
    return next(name for n in count() if shard_of(name := f"failing-{n}") in shards)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_replica_whose_clock_jumps_sends_nothing_twice_and_counts_as_before(
    migrated_database: str, clock: Clock, installation: Installation, receiver: Receiver, tmp_path: Path, enter: Enter
) -> None:
    stage = Stage.on(migrated_database, installation, receiver, tmp_path, ENVIRON)
    scene = stage.scene
    right = stage.start()
    stage.invite(right, sick=False)
    wrong = installation.start(scene.url, environ={**ENVIRON, **clock.environ})
    failing = [
        scene.subscribe(right, customer_in(shards), status=500, delay_ms=50, healthy=False)
        for shards in wait_until_shared(scene, 2).values()
    ]

    def fail(times: int) -> None:
        for subscribed in failing:
            for _ in range(times):
                scene.emit(subscribed.customer_id)

    with stage.load(PER_SECOND) as emitter:
        for ahead_s in JUMPS_S:
            emitter.go_on(100)
            fail(DISABLE_AFTER // 4)
            scene.clocks.append(ahead_s)
            clock.set_ahead(ahead_s)
            seen = len(receiver.receipts())
            until(
                lambda ahead_s=ahead_s, seen=seen: [
                    r for r in receiver.receipts_from(seen) if abs(r.age_s + ahead_s) <= STALE_S
                ],
                within_s=SOON_S,
                what="a signature by the clock that was set",
            )
            emitter.go_on(100)
        assert scene.rows(STATE) == []
        fail(DISABLE_AFTER)
        until(lambda: len(scene.rows(STATE)) == len(failing), within_s=30, what="both are disabled")
        emitter.go_on(100)
        time.sleep(1.5)  # whatever wrongly goes on shows by then
    verdict = stage.judge(emitter)
    enter("C12", "clock of one of two replicas set 1 h ahead, then 2 h behind", len(JUMPS_S), verdict, emitter)
    names = {subscribed.name for subscribed in failing}
    assert verdict.duplicates == 0
    assert verdict.interrupted == set()
    assert set(scene.rows(STATE)) == {(subscribed.id, "consecutive_failures") for subscribed in failing}
    assert Counter(r.name for r in receiver.receipts() if r.name in names) == dict.fromkeys(names, DISABLE_AFTER)
    assert Counter(name for _, name, _ in verdict.logged if name in names) == dict.fromkeys(names, DISABLE_AFTER)
    assert wrong.stop() == 0
    assert right.stop() == 0
