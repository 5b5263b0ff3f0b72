"""The daemon is killed, stopped, starved and fed with rows that it cannot read."""

from __future__ import annotations

import random
import resource
import threading
import time
from pathlib import Path
from typing import Any, Final, LiteralString

import httpx
import pytest

from tests.chaos.figures import Enter
from tests.chaos.stage import Stage
from tests.e2e import oracle
from tests.e2e.load import PER_SUBSCRIPTION
from tests.e2e.scene import AUTHORIZED, Scene
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import Installation, until

pytestmark = pytest.mark.timeout(400)

TAKEOVER_S: Final = 2.0
EMIT: Final = "/api/v1/ecosystem/events/emit"
DRAIN_S: Final = 27.0
MAX_ATTEMPTS: Final = 20
CHAOS: Final = pytest.mark.chaos


@CHAOS
def test_kills_with_endpoints_of_all_sorts(
    migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path, enter: Enter
) -> None:
    stage, chance, kills = Stage.on(migrated_database, installation, receiver, tmp_path), random.Random(1), 20
    stage.invite(stage.start())
    cut_off: set[oracle.Claim] = set()
    takeovers: list[float] = []
    with stage.load() as emitter:
        for _ in range(kills):
            time.sleep(chance.uniform(1, 5))  # when a fault comes is chance; what follows is waited for
            installation.processes[-1].kill()
            stage.wait_until_dead()
            claims = stage.scene.claims()
            seen = len(receiver.receipts())
            daemon = stage.start()
            started_at = time.monotonic()
            if claims & stage.received():
                again = until(
                    lambda claims=claims, seen=seen: [
                        r.at for r in receiver.receipts_from(seen) if (*r.duty, r.attempt - 1) in claims
                    ],
                    within_s=10,
                    what="a redelivery",
                )
                takeovers.append(max(again[0] - started_at, 0.0))
            assert daemon.wait_for("shards.gained")["recovered"] == len(claims)
            cut_off |= claims
    verdict = stage.judge(emitter)
    in_flight = stage.received() & cut_off
    bound = f"in flight at the kills: {len(in_flight)}"
    enter("C1", "SIGKILL of the daemon", kills, verdict, emitter, bound=bound, recovery_s=max(takeovers))
    assert verdict.repeated <= in_flight, "a duplicate of something that no kill cut off"
    # The twentieth attempt of any kind is the last, and the log says that rather than what befell it.
    last = {claim for claim, outcome in verdict.logged.items() if outcome == "exhausted" and claim[2] == MAX_ATTEMPTS}
    assert cut_off <= verdict.interrupted | last
    assert verdict.duplicates <= kills * PER_SUBSCRIPTION * len(stage.scene.subscribed)
    assert max(takeovers) < TAKEOVER_S
    assert installation.processes[-1].stop() == 0


@CHAOS
def test_stops_under_load_cause_no_duplicate(
    migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path, enter: Enter
) -> None:
    stage, times = Stage.on(migrated_database, installation, receiver, tmp_path), 10
    stage.invite(stage.start())
    took: list[float] = []
    with stage.load() as emitter:
        for _ in range(times):
            emitter.go_on(150)
            at = time.monotonic()
            assert installation.processes[-1].stop() == 0
            took.append(time.monotonic() - at)
            stage.start()
    verdict = stage.judge(emitter)
    assert installation.processes[-1].stop() == 0
    enter("C2", "SIGTERM under load", times, verdict, emitter)
    assert max(took) < DRAIN_S
    assert verdict.duplicates == 0
    assert verdict.interrupted == set()


class Client:
    """Emits one event by the API, whose daemon is killed before the answer came, or just after."""

    def __init__(self, scene: Scene, url: str, event_id: str) -> None:
        self.event = {
            "customer_id": "acme",
            "event_type": "deal.won",
            "event_id": event_id,
            "payload": {"of": event_id},
        }
        self.scene = scene
        self.url = url
        self.statuses: list[int] = []

    def ask(self) -> None:
        """Status 0 where no answer came."""
        try:
            answer = httpx.post(f"{self.url}{EMIT}", json=self.event, headers=AUTHORIZED, timeout=10)
        except httpx.HTTPError:
            self.statuses.append(0)
        else:
            self.statuses.append(answer.status_code)


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=CHAOS)])
def test_a_request_that_is_repeated_after_a_kill_makes_one_event(
    migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path, kills: int, enter: Enter
) -> None:
    stage, chance = Stage.on(migrated_database, installation, receiver, tmp_path), random.Random(2)
    scene = stage.scene
    scene.open()
    daemon = stage.start()
    scene.subscribe(daemon)
    first: list[int] = []
    for n in range(kills):
        client = Client(scene, daemon.api, f"order-{n}")
        asking = threading.Thread(target=client.ask)
        asking.start()
        time.sleep(chance.uniform(0, 0.02))  # before, within or after the transaction
        daemon.kill()
        asking.join()
        first += client.statuses
        daemon = stage.start()
        client.url = daemon.api
        client.ask()
        assert client.statuses[-1] == 202
        scene.rows("INSERT INTO ledger VALUES (%s, 'acme', 'deal.won', 1)", [f"order-{n}"])
    verdict = oracle.judge(scene)
    assert scene.rows("SELECT count(*), count(DISTINCT id) FROM dealix.events") == [(kills, kills)]
    unanswered = first.count(0)
    in_flight = {(*r.duty, r.attempt) for r in receiver.receipts()} & verdict.interrupted
    bound = f"in flight at the kills: {len(in_flight)}"
    enter("C16", f"SIGKILL within an emit by HTTP ({unanswered} unanswered), repeated", kills, verdict, bound=bound)
    assert verdict.repeated <= in_flight
    assert unanswered, "every request was answered before its kill: the test shows nothing"
    assert daemon.stop() == 0


POISON: Final[dict[str, LiteralString]] = {
    "a secret that does not open": "UPDATE dealix.subscriptions SET secret_sealed = set_byte(secret_sealed, 30,"
    " get_byte(secret_sealed, 30) # 1)",
    "a URL that is none": "UPDATE dealix.subscriptions SET endpoint_url = 'http://['",
    "a URL with a line break": r"UPDATE dealix.subscriptions SET endpoint_url = E'http://127.0.0.1:9/\r\nX: y'",
}
BAD_EVENT: Final = "UPDATE dealix.events SET data = repeat('{', 1000) WHERE id = %s"


@pytest.mark.parametrize("commits", [100, pytest.param(2000, marks=CHAOS)])
def test_rows_that_cannot_be_read_stop_nobody_else(
    migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path, commits: int, enter: Enter
) -> None:
    stage = Stage.on(migrated_database, installation, receiver, tmp_path)
    daemon = stage.start()
    stage.invite(daemon, sick=False)
    poisoned = {what: stage.scene.subscribe(daemon, f"poisoned-{n}", healthy=False) for n, what in enumerate(POISON)}
    bad = stage.scene.subscribe(daemon, "poisoned", healthy=False)
    assert daemon.stop() == 0
    for what, statement in POISON.items():
        stage.scene.rows(statement + " WHERE id = %(id)s", {"id": poisoned[what].id})
        for _ in range(3):
            stage.scene.emit(poisoned[what].customer_id)
    event_id = stage.scene.emit(bad.customer_id)
    stage.scene.rows(BAD_EVENT, [event_id])
    daemon = stage.start()
    with stage.load() as emitter:
        emitter.go_on(commits)
    verdict = stage.judge(emitter)
    enter("C17", "rows that cannot be read", len(POISON) + 1, verdict, emitter)
    assert {r.name for r in receiver.receipts()}.isdisjoint(s.name for s in poisoned.values())
    states: dict[str, Any] = dict(stage.scene.rows("SELECT id, disabled_reason FROM dealix.subscriptions"))
    assert states[poisoned["a secret that does not open"].id] == "secret_unreadable"
    assert verdict.duplicates == 0
    assert daemon.stop() == 0


@CHAOS
def test_a_daemon_without_descriptors_recovers(
    migrated_database: str, installation: Installation, receiver: Receiver, tmp_path: Path, enter: Enter
) -> None:
    # An attempt that finds no descriptor is a failure, and comes again by the schedule.
    environ = {"DEALIX_DELIVERY__RETRY_SCHEDULE_S": "0,2,2,2,2,2,2,2", "DEALIX_DELIVERY__BREAKER_COOLDOWN_S": 2}
    stage, times = Stage.on(migrated_database, installation, receiver, tmp_path, environ), 3
    daemon = stage.start()
    stage.invite(daemon, sick=False)
    recoveries: list[float] = []
    with stage.load() as emitter:
        for _ in range(times):
            emitter.go_on(200)
            used = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
            usual = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (max(used - 5, 16), usual[1]))
            pids = stage.scene.sessions("dealix%")
            stage.scene.rows("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])
            time.sleep(4)  # the fault's own length
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, usual)
            at = time.monotonic()
            recoveries.append(stage.resumed_after(emitter, at, within_s=20))
    verdict = stage.judge(emitter)
    enter("C18", "descriptors used up for 4 s", times, verdict, emitter, recovery_s=max(recoveries))
    assert verdict.duplicates == 0
    assert daemon.running()
    assert daemon.stop() == 0
