"""The oracle fails builds of the daemon that have a bug built in, and passes the same program without one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.figures import Enter
from tests.chaos.stage import Stage
from tests.e2e import oracle
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import Installation, until

RARE: Final = 1000
SLOW_MS: Final = 1000
MANY: Final = 60


def built_with(bug: str, directory: Path) -> Installation:
    return Installation(directory, [sys.executable, "-m", "tests.chaos.broken_daemon", bug, "serve"])


@pytest.fixture
def bug() -> str:
    return "none"


@pytest.fixture
def broken(tmp_path: Path, bug: str) -> Iterator[Installation]:
    installation = built_with(bug, tmp_path)
    yield installation
    installation.end()


def deliver_many(migrated_database: str, broken: Installation, receiver: Receiver, directory: Path) -> Stage:
    """So many requests that the rare one is among them."""
    stage = Stage.on(migrated_database, broken, receiver, directory)
    stage.invite(stage.start(), sick=False)
    with stage.load(400) as emitter:
        until(lambda: len(receiver.receipts()) > 1.2 * RARE, within_s=40, what="enough requests")
        emitter.go_on(10)
    return stage


@pytest.mark.timeout(90)
def test_the_program_without_a_bug_passes(
    migrated_database: str, broken: Installation, receiver: Receiver, tmp_path: Path, enter: Enter
) -> None:
    stage = deliver_many(migrated_database, broken, receiver, tmp_path)
    verdict = oracle.judge(stage.scene)
    assert verdict.duplicates == 0
    enter("–", "none", 1, verdict)
    assert broken.complaints() == []


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("bug", "said"), [("drops", "every event at every endpoint"), ("doubles", r"\[1, 1\]")])
def test_one_request_in_a_thousand_that_goes_wrong_is_found(
    migrated_database: str, broken: Installation, receiver: Receiver, tmp_path: Path, said: str
) -> None:
    stage = deliver_many(migrated_database, broken, receiver, tmp_path)
    with pytest.raises(AssertionError, match=said):
        oracle.judge(stage.scene, within_s=3)


def disable_with_a_full_mailbox(stage: Stage) -> oracle.Verdict:
    """A slow endpoint has work for seconds when it is disabled."""
    daemon = stage.start()
    stage.scene.open()
    slow = stage.scene.subscribe(daemon, delay_ms=SLOW_MS, healthy=False)
    for _ in range(MANY):
        stage.scene.emit()
    stage.scene.receiver.wait_for(4)
    stage.scene.switch(daemon, slow, enabled=False)
    before = len(stage.scene.receiver.receipts())
    last = stage.scene.subscribe(daemon, "other", delay_ms=3 * SLOW_MS)
    stage.scene.emit("other")
    stage.scene.receiver.wait_for(1, last.name)
    until(lambda: last.name in {name for _, name in stage.scene.receiver.answered()}, within_s=10, what="its end")
    assert before < MANY, "nothing was left to do at the disable: the test shows nothing"
    return oracle.judge(stage.scene)


@pytest.mark.parametrize("bug", ["ignores a disable"])
def test_requests_after_a_disable_are_found(
    migrated_database: str, broken: Installation, receiver: Receiver, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="after it was disabled"):
        disable_with_a_full_mailbox(Stage.on(migrated_database, broken, receiver, tmp_path))


def test_a_disable_with_a_full_mailbox_passes(
    migrated_database: str, broken: Installation, receiver: Receiver, tmp_path: Path
) -> None:
    verdict = disable_with_a_full_mailbox(Stage.on(migrated_database, broken, receiver, tmp_path))
    assert verdict.duplicates == 0
    assert broken.complaints() == []
