"""The primary dies and its synchronous standby is promoted: the daemon follows, and what was acknowledged arrives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import pytest

from tests.chaos.figures import Enter
from tests.e2e import oracle
from tests.e2e.figures import Tell
from tests.e2e.load import PER_SECOND, PER_SUBSCRIPTION, customers, subscribe_all
from tests.e2e.scene import AUTHORIZED, Scene
from tests.e2e.traffic import Emitter, Receiver, open_emitter
from tests.support.daemon_process import DaemonProcess, Installation, until
from tests.support.postgres import DEBIAN_BIN, fresh_database
from tests.support.replication import Replicated, ask, at, replicated

CUSTOMERS: Final = customers()
RECOVERED_S: Final = 5.0
EMIT: Final = "/api/v1/ecosystem/events/emit"


@pytest.fixture(params=["18", pytest.param("15", marks=[pytest.mark.external_postgres, pytest.mark.chaos])])
def pair(request: pytest.FixtureRequest) -> Iterator[Replicated]:
    with replicated(DEBIAN_BIN if request.param == "15" else None) as made:
        yield made


def begin(pair: Replicated, installation: Installation, receiver: Receiver) -> tuple[Scene, DaemonProcess]:
    """A daemon at work on the primary, which from now on answers a COMMIT when the standby has it."""
    name = urlsplit(fresh_database(pair.primary.url)).path.removeprefix("/")
    scene = Scene(pair.url(name), receiver)
    daemon = installation.start(scene.url, environ={"DEALIX_DATABASE__POOL_SIZE": 3})
    scene.open()
    subscribe_all(scene, daemon, CUSTOMERS)
    pair.synchronise()
    return scene, daemon


def arrived_since(scene: Scene, emitter: Emitter, seen: int, since: float) -> float:
    """When the first event arrived that was committed since then; 0 if none has yet."""
    committed = emitter.events("committed")
    return next((r.at for r in scene.receiver.receipts_from(seen) if committed.get(r.event_id, 0) > since), 0.0)


@pytest.mark.timeout(120)
def test_a_daemon_follows_a_failover_and_loses_nothing_that_was_acknowledged(
    pair: Replicated, installation: Installation, receiver: Receiver, tmp_path: Path, tell: Tell, enter: Enter
) -> None:
    scene, daemon = begin(pair, installation, receiver)
    with open_emitter(tmp_path, scene.url, CUSTOMERS, per_second=PER_SECOND) as emitter:
        emitter.go_on(150)
        killed_at = time.monotonic()
        pair.primary.kill()
        seen = len(receiver.receipts())
        pair.standby.promote()
        promoted_at = time.monotonic()
        resumed = until(lambda: arrived_since(scene, emitter, seen, promoted_at), within_s=20, what="a delivery")
        emitter.go_on(150)
        emitter.finish()
    verdict = oracle.judge(scene)
    kept = {event_id for (event_id,) in scene.rows("SELECT event_id FROM ledger")}
    acknowledged = emitter.events("committed").keys()
    tell(f"{len(acknowledged)} acknowledged events, {verdict.duties} deliveries; duplicates: {verdict.duplicates}")
    tell(f"promoted {promoted_at - killed_at:.2f} s after the kill; first delivery {resumed - promoted_at:.2f} s later")
    bound = f"at most {PER_SUBSCRIPTION * len(scene.subscribed)} in flight"
    enter("–", "primary killed, standby promoted", 1, verdict, emitter, bound=bound, recovery_s=resumed - promoted_at)
    assert acknowledged <= kept, "the new primary does not have what the old one had acknowledged"
    assert emitter.events("rolled back").keys().isdisjoint(r.event_id for r in receiver.receipts())
    assert verdict.duplicates <= PER_SUBSCRIPTION * len(scene.subscribed)
    assert resumed - promoted_at < RECOVERED_S
    failover = daemon.lines("database.failed_over")
    assert [(line["timeline"], line["former"]) for line in failover] == [(2, 1)]
    assert daemon.running()
    assert daemon.stop() == 0


@pytest.mark.chaos
@pytest.mark.timeout(120)
def test_a_daemon_leaves_a_former_primary_that_lives_on(
    pair: Replicated, installation: Installation, receiver: Receiver, tell: Tell
) -> None:
    """The worst case: nobody stops the old one, it takes writes, and it stands first in the URL."""
    scene, daemon = begin(pair, installation, receiver)
    ask(pair.primary.url, "ALTER SYSTEM RESET synchronous_standby_names")
    ask(pair.primary.url, "SELECT pg_reload_conf()")
    scene.emit(CUSTOMERS[0])
    oracle.wait_until_done(scene, within_s=10)
    pair.standby.promote()
    former, present = at(scene.url, pair.primary), Scene(at(scene.url, pair.standby), receiver)
    pair.primary.freeze()  # so that the daemon looks for another one
    until(lambda: daemon.lines("database.failed_over"), within_s=20, what="the daemon on the new primary")
    pair.primary.thaw()
    thawed_at = time.monotonic()
    until(lambda: present.sessions("dealix owner"), within_s=5, what="the owner on the new primary")
    present.subscribed = scene.subscribed
    event_id = present.emit(CUSTOMERS[0])
    until(lambda: [r for r in receiver.receipts() if r.event_id == event_id], within_s=10, what="a delivery")
    until(lambda: not Scene(former, receiver).sessions(), within_s=15, what="nobody left on the former primary")
    tell(f"the former primary was left alone {time.monotonic() - thawed_at:.2f} s after it was thawed")
    assert httpx.get(f"{daemon.api}/readyz").status_code == 200
    assert not Scene(former, receiver).sessions(), "a session went back to the former primary"
    assert daemon.stop() == 0


@pytest.mark.timeout(120)
def test_an_event_is_acknowledged_only_when_the_standby_has_it(
    pair: Replicated, installation: Installation, receiver: Receiver, tell: Tell
) -> None:
    scene, daemon = begin(pair, installation, receiver)
    event = {"customer_id": CUSTOMERS[0], "event_type": "deal.won", "payload": {"n": 1}, "event_id": "order-7"}
    pair.standby.freeze()
    began = time.monotonic()
    answer = httpx.post(f"{daemon.api}{EMIT}", json=event, headers=AUTHORIZED, timeout=20)
    took_s = time.monotonic() - began
    tell(f"with a standby that does not answer, an emit is answered {answer.status_code} after {took_s:.2f} s")
    assert answer.status_code == 503, "acknowledged, though a failover at this moment would lose it"
    assert answer.json()["code"] == "outcome_unknown"
    pair.standby.thaw()
    again = httpx.post(f"{daemon.api}{EMIT}", json=event, headers=AUTHORIZED, timeout=20)
    assert (again.status_code, again.json()["event_id"]) == (202, "order-7")
    until(lambda: len(receiver.receipts()) >= again.json()["matched"], within_s=20, what="its deliveries")
    assert scene.rows("SELECT count(*) FROM dealix.events WHERE id = 'order-7'") == [(1,)]
    assert daemon.stop() == 0
