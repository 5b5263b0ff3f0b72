"""Postgres dies, freezes, hangs up, runs out of room for sessions, is locked, or loses answers; the daemon lives on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import psycopg
import pytest

from daemon.actors.ownership import CHECK_S, HEARTBEAT_S
from tests.chaos.figures import Enter
from tests.chaos.proxy import Proxy
from tests.chaos.stage import Stage, sleep_until
from tests.chaos.watching import rss_kb
from tests.e2e import oracle
from tests.e2e.load import PER_SUBSCRIPTION
from tests.e2e.prober import Prober, probing
from tests.e2e.shares import wait_until_shared
from tests.e2e.traffic import Emitter, Receipt, Receiver
from tests.support.daemon_process import DaemonProcess, Installation, until
from tests.support.own_server import OwnServer
from tests.support.postgres import fresh_database

pytestmark = [pytest.mark.parametrize("own_cluster", ["18"], indirect=True), pytest.mark.timeout(300)]

RECOVERED_S: Final = 5.0
UNAVAILABLE_S: Final = 2.3
"""Two seconds, and what a busy machine adds."""
NOTICED_S: Final = 2 * HEARTBEAT_S + 2 * CHECK_S
"""Two heartbeats, and one check that is too early to find the second one missing."""
HEARD_AGAIN_S: Final = 6.5
"""Two heartbeats and a check without an echo, and a new session."""
FLAT_KB: Final = 12_000
LEASE_S: Final = 60.0
DELAY_S: Final = 0.08
ENVIRON: Final = {"DEALIX_DATABASE__POOL_SIZE": 4}


@dataclass
class Case:
    """A daemon under load on a server that may be harmed."""

    stage: Stage
    daemon: DaemonProcess
    server: OwnServer
    emitter: Emitter
    prober: Prober
    recoveries: list[float]

    def recover(self, since: float, within_s: float = 20.0) -> None:
        """Wait until deliveries go on."""
        self.recoveries.append(self.stage.resumed_after(self.emitter, since, within_s=within_s))

    def finish(self, *, within_s: float = 90.0) -> oracle.Verdict:
        """The end of the load, and the verdict; the daemon is still the same process."""
        self.emitter.go_on(50)
        self.emitter.finish()
        verdict = self.stage.judge(self.emitter, within_s=within_s)
        kept = {event_id for (event_id,) in self.stage.scene.rows("SELECT event_id FROM ledger")}
        assert self.emitter.events("committed").keys() <= kept, "an acknowledged commit is not there"
        assert self.daemon.running()
        assert self.daemon.stop() == 0
        return verdict


@contextmanager
def case_on(stage: Stage, server: OwnServer, url: str, *, sick: bool) -> Generator[Case]:
    """The daemon goes to `url`; `sick`: some of the endpoints fail."""
    daemon = stage.start(url)
    stage.invite(daemon, sick=sick)
    with stage.load() as emitter, probing(daemon.api) as prober:
        yield Case(stage, daemon, server, emitter, prober, [])


@pytest.fixture
def case(own_server: OwnServer, installation: Installation, receiver: Receiver, tmp_path: Path) -> Iterator[Case]:
    stage = Stage.on(fresh_database(own_server.url), installation, receiver, tmp_path, ENVIRON)
    with case_on(stage, own_server, stage.scene.url, sick=True) as made:
        yield made


@pytest.fixture
def well(own_server: OwnServer, installation: Installation, receiver: Receiver, tmp_path: Path) -> Iterator[Case]:
    """With endpoints that answer, so that a lost claim shows soon."""
    stage = Stage.on(fresh_database(own_server.url), installation, receiver, tmp_path, ENVIRON)
    with case_on(stage, own_server, stage.scene.url, sick=False) as made:
        yield made


@pytest.fixture
def by_proxy(
    own_server: OwnServer, proxy: Proxy, installation: Installation, receiver: Receiver, tmp_path: Path
) -> Iterator[Case]:
    """The daemon goes through the proxy; application and oracle do not."""
    stage = Stage.on(fresh_database(own_server.url), installation, receiver, tmp_path, ENVIRON)
    with case_on(stage, own_server, proxy.url(stage.scene.url), sick=False) as made:
        yield made


# -- it dies ----------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_all_of_postgres_is_killed_again_and_again(case: Case, enter: Enter) -> None:
    times = 5
    for n in range(times):
        case.emitter.go_on(300)
        case.server.kill()
        time.sleep(0.5 * n)  # the fault's own length
        case.server.start()
        case.recover(time.monotonic())
    verdict = case.finish()
    enter("C4", "SIGKILL of all of Postgres", times, verdict, case.emitter, recovery_s=max(case.recoveries))
    assert max(case.recoveries) < RECOVERED_S
    assert verdict.duplicates == 0


@pytest.mark.chaos
def test_a_random_backend_is_killed_and_every_connection_drops(case: Case, enter: Enter) -> None:
    times, chance = 5, random.Random(5)
    for _ in range(times):
        case.emitter.go_on(300)
        at = time.monotonic()
        os.kill(chance.choice(until(case.stage.scene.sessions, within_s=5, what="a session")), signal.SIGKILL)
        case.recover(at)
    verdict = case.finish()
    enter("C5", "SIGKILL of one backend", times, verdict, case.emitter, recovery_s=max(case.recoveries))
    assert max(case.recoveries) < RECOVERED_S
    assert verdict.duplicates == 0


# -- it freezes -------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_a_database_that_is_frozen_for_half_a_minute(case: Case, enter: Enter) -> None:
    case.emitter.go_on(600)
    before_kb = rss_kb(case.daemon.pid)
    frozen_at = time.monotonic()
    case.server.freeze()
    sleep_until(frozen_at + 30)
    after_kb = rss_kb(case.daemon.pid)
    thawed_at = time.monotonic()
    case.server.thaw()
    case.recover(thawed_at)
    case.emitter.go_on(600)
    verdict = case.finish()
    enter("C6", "all of Postgres frozen for 30 s", 1, verdict, case.emitter, recovery_s=max(case.recoveries))
    away = case.prober.between(frozen_at + 0.1, thawed_at - UNAVAILABLE_S)
    assert {a.status for a in away} == {503}
    assert max(a.took_s for a in away) < UNAVAILABLE_S
    late = [r.at - frozen_at for r in case.stage.scene.receiver.receipts() if frozen_at + 1.5 < r.at < thawed_at]
    assert late == [], "sent while nothing could be recorded"
    assert after_kb - before_kb < FLAT_KB
    assert max(case.recoveries) < RECOVERED_S
    assert verdict.duplicates == 0


@pytest.mark.chaos
def test_the_listening_backend_alone_is_frozen(well: Case, enter: Enter) -> None:
    times = 3
    for _ in range(times):
        well.emitter.go_on(200)
        (owner,) = until(lambda: well.stage.scene.sessions("dealix owner"), within_s=10, what="the owner's session")
        lost = len(well.daemon.lines("ownership.lost"))
        at = time.monotonic()
        os.kill(owner, signal.SIGSTOP)
        try:
            well.daemon.wait_for("ownership.lost", lost + 1, within_s=10)
        finally:
            os.kill(owner, signal.SIGCONT)
        well.recover(at)
    verdict = well.finish()
    enter("C8", "only the listening backend frozen", times, verdict, well.emitter, recovery_s=max(well.recoveries))
    assert max(well.recoveries) < HEARD_AGAIN_S + RECOVERED_S
    assert verdict.duplicates == 0


@pytest.mark.chaos
@pytest.mark.parametrize("back", ["pass", "forget"])
def test_a_network_that_falls_silent(by_proxy: Case, proxy: Proxy, back: str, enter: Enter) -> None:
    """It comes back with what it held, or with no memory of the connections that there were."""
    times = 3
    for _ in range(times):
        by_proxy.emitter.go_on(200)
        proxy.tell("hold")
        time.sleep(8)  # the fault's own length
        proxy.tell(back)
        by_proxy.recover(time.monotonic(), within_s=60)
    verdict = by_proxy.finish(within_s=LEASE_S + 60)
    fault = "network silent for 8 s" + (", then without the old connections" if back == "forget" else "")
    enter("C8", fault, times, verdict, by_proxy.emitter, recovery_s=max(by_proxy.recoveries))
    assert max(by_proxy.recoveries) < RECOVERED_S
    assert verdict.duplicates == 0


@pytest.mark.chaos
@pytest.mark.parametrize("replicas", [1, 2])
def test_the_listening_session_is_discarded(by_proxy: Case, proxy: Proxy, replicas: int, enter: Enter) -> None:
    """LISTEN, the locks of all shards and every prepared statement are gone, and the connection stands as before."""
    others = [by_proxy.stage.start() for _ in range(replicas - 1)]
    times = 6
    faults = [meddle(by_proxy, proxy, "DISCARD ALL", replicas) for _ in range(times)]
    wait_until_shared(by_proxy.stage.scene, replicas)
    verdict = by_proxy.finish()
    noticed_s = max(lost_at - at for at, lost_at in faults)
    bound = "0" if replicas == 1 else "in flight at the faults"
    enter("C8", f"DISCARD ALL on the listening session, replicas: {replicas}; noticed after {noticed_s:.2f} s", times,
          verdict, by_proxy.emitter, bound=bound, recovery_s=max(by_proxy.recoveries))  # fmt: skip
    assert noticed_s < NOTICED_S
    assert max(by_proxy.recoveries) < RECOVERED_S
    if replicas == 1:
        assert verdict.duplicates == 0
    assert verdict.repeated <= straddling(by_proxy.stage, faults), "a duplicate of something that was not in flight"
    assert verdict.duplicates <= times * PER_SUBSCRIPTION * len(by_proxy.stage.scene.subscribed)
    for daemon in others:
        assert daemon.stop() == 0


@pytest.mark.chaos
def test_the_listening_session_goes_deaf(by_proxy: Case, proxy: Proxy, enter: Enter) -> None:
    """Locks and statements stay, so that nothing but the missing heartbeat tells."""
    times = 3
    faults = [meddle(by_proxy, proxy, "UNLISTEN *", 1) for _ in range(times)]
    verdict = by_proxy.finish()
    noticed_s = max(lost_at - at for at, lost_at in faults)
    enter("C8", f"UNLISTEN * on the listening session, noticed after {noticed_s:.2f} s", times, verdict,
          by_proxy.emitter, recovery_s=max(by_proxy.recoveries))  # fmt: skip
    assert noticed_s < NOTICED_S
    assert max(by_proxy.recoveries) < RECOVERED_S
    assert verdict.duplicates == 0


def meddle(case: Case, proxy: Proxy, statement: str, replicas: int) -> tuple[float, float]:
    """Run a statement on the session that the daemon has through the proxy; when, and when the daemon gave it up."""
    wait_until_shared(case.stage.scene, replicas)
    case.emitter.go_on(100)
    lost = len(case.daemon.lines("ownership.lost"))
    at = time.monotonic()
    assert proxy.tell("inject", "dealix owner", statement) == "done"
    case.daemon.wait_for("ownership.lost", lost + 1, within_s=2 * NOTICED_S)
    lost_at = time.monotonic()
    case.recover(at)
    return at, lost_at


def straddling(stage: Stage, faults: list[tuple[float, float]]) -> set[oracle.Claim]:
    """Attempts that were received before the end of a fault, and after whose beginning the same duty came again."""
    found: set[oracle.Claim] = set()
    by_duty: defaultdict[oracle.Duty, list[Receipt]] = defaultdict(list)
    for receipt in stage.scene.receiver.receipts():
        by_duty[receipt.duty].append(receipt)
    for receipts in by_duty.values():
        for earlier, later in pairwise(receipts):
            if any(earlier.at <= ended + oracle.ARRIVING_S and began <= later.at for began, ended in faults):
                found.add(earlier.claim)
    return found


# -- it hangs up ------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_the_listening_session_is_terminated_again_and_again(case: Case, enter: Enter) -> None:
    times = 20
    for _ in range(times):
        case.emitter.go_on(100)
        pids = until(lambda: case.stage.scene.sessions("dealix owner"), within_s=10, what="the owner's session")
        at = time.monotonic()
        case.stage.scene.rows("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])
        case.recover(at)
    verdict = case.finish()
    enter("C7", "LISTEN session terminated", times, verdict, case.emitter, recovery_s=max(case.recoveries))
    assert max(case.recoveries) < 2
    assert verdict.duplicates == 0


@pytest.mark.chaos
def test_a_network_that_cuts_every_connection(by_proxy: Case, proxy: Proxy, enter: Enter) -> None:
    times = 10
    for _ in range(times):
        by_proxy.emitter.go_on(100)
        proxy.tell("cut")
        by_proxy.recover(time.monotonic())
    proxy.tell("refuse")
    time.sleep(5)  # the fault's own length
    proxy.tell("pass")
    by_proxy.recover(time.monotonic())
    verdict = by_proxy.finish(within_s=LEASE_S + 60)
    enter("C5", "every connection reset", times + 1, verdict, by_proxy.emitter, recovery_s=max(by_proxy.recoveries))
    assert max(by_proxy.recoveries) < RECOVERED_S
    assert verdict.duplicates == 0


@pytest.mark.parametrize("times", [3, pytest.param(30, marks=pytest.mark.chaos)])
def test_transactions_whose_answer_is_lost_are_neither_lost_nor_doubled(
    by_proxy: Case, proxy: Proxy, times: int, enter: Enter
) -> None:
    """What the server committed while the daemon cannot know. Lost claims come back with the next owner, or lease."""
    for n in range(times):
        by_proxy.emitter.go_on(40)
        until(lambda n=n: lost_answers(proxy) > n, within_s=10, what="a lost answer")
        proxy.tell("lose", "dealix", "0")
    lost = int(proxy.tell("lose", "dealix", "0"))
    by_proxy.emitter.finish()
    assert by_proxy.daemon.stop() == 0
    unanswered = by_proxy.stage.scene.claims()
    by_proxy.daemon = by_proxy.stage.start()
    verdict = by_proxy.stage.judge(by_proxy.emitter)
    enter("–", "answer to a COMMIT lost", lost, verdict, by_proxy.emitter)
    assert lost >= times
    assert verdict.duplicates == 0
    assert unanswered <= verdict.interrupted


def lost_answers(proxy: Proxy) -> int:
    """Lose one more answer to the deliveries' pool; how many were lost so far."""
    return int(proxy.tell("lose", "dealix", "1"))


@pytest.mark.parametrize("slow_s", [6, pytest.param(30, marks=pytest.mark.chaos)])
def test_a_network_that_is_slow_costs_no_shard(by_proxy: Case, proxy: Proxy, slow_s: float, enter: Enter) -> None:
    """So slow that one look at the shards takes longer than the time from one look to the next."""
    proxy.tell("delay", str(DELAY_S))
    slow_at = time.monotonic()
    sleep_until(slow_at + slow_s)
    lost = by_proxy.daemon.lines("ownership.lost")
    proxy.tell("pass")
    by_proxy.recover(time.monotonic())
    verdict = by_proxy.finish()
    enter("–", f"each packet {DELAY_S * 1000:g} ms late", 1, verdict, by_proxy.emitter,
          recovery_s=max(by_proxy.recoveries))  # fmt: skip
    assert lost == []
    assert verdict.duplicates == 0
    assert verdict.interrupted == set()


# -- it has no room, or is in the way ---------------------------------------------------------------------------------


@pytest.mark.chaos
def test_no_connection_is_left_for_the_daemon(case: Case, enter: Enter) -> None:
    times = 3
    for _ in range(times):
        case.emitter.go_on(200)
        with contextlib.ExitStack() as taken:
            pids = case.stage.scene.sessions()
            held = [psycopg.connect(case.stage.scene.url, autocommit=True)]
            taken.callback(held[0].close)
            held[0].execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])
            ends_at = time.monotonic() + 6  # the fault's own length
            while time.monotonic() < ends_at:
                try:
                    taken.callback(psycopg.connect(case.stage.scene.url, connect_timeout=2).close)
                except psycopg.OperationalError:
                    time.sleep(0.01)
        case.recover(time.monotonic())
    verdict = case.finish()
    enter("C9", "connections used up for 6 s", times, verdict, case.emitter, recovery_s=max(case.recoveries))
    assert max(case.recoveries) < RECOVERED_S
    assert verdict.duplicates == 0


@pytest.mark.chaos
def test_a_snapshot_from_long_ago_locks_and_deadlocks(case: Case, enter: Enter) -> None:
    url, over = case.stage.scene.url, threading.Event()
    with psycopg.connect(url) as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM dealix.events")
        quarrel = threading.Thread(target=lock_against_the_grain, args=(url, over))
        quarrel.start()
        try:
            case.emitter.go_on(4000)
            with psycopg.connect(url) as locker:
                locker.execute("LOCK TABLE dealix.deliveries")
                time.sleep(20)  # the fault's own length
                locker.rollback()
            case.recover(time.monotonic())
        finally:
            over.set()
            quarrel.join()
        case.emitter.go_on(1000)
    verdict = case.finish(within_s=LEASE_S + 60)
    enter("C10", "old snapshot, table locked 20 s, rows locked backwards", 1, verdict, case.emitter,
          recovery_s=max(case.recoveries))  # fmt: skip
    assert max(case.recoveries) < RECOVERED_S
    assert verdict.duplicates == 0


def lock_against_the_grain(url: str, over: threading.Event) -> None:
    """Lock rows in an order that nobody else uses, so that the server finds deadlocks and ends one of the two."""
    with psycopg.connect(url) as connection:
        while not over.wait(0.02):
            try:
                connection.execute("SELECT FROM dealix.deliveries ORDER BY id DESC LIMIT 5 FOR UPDATE")
                connection.execute("SELECT FROM dealix.subscription_health ORDER BY random() LIMIT 5 FOR UPDATE")
                time.sleep(0.05)
                connection.commit()
            except psycopg.errors.DeadlockDetected:
                connection.rollback()
