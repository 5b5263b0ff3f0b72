"""The daemon has not enough memory, or no room for temporary files: its supervisor restarts it, and nothing is lost."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from daemon.actors.delivery import MAILBOX
from tests.chaos.disk import Ballast, small_disk
from tests.chaos.figures import Enter
from tests.chaos.memory_limit import MemoryLimit, memory_limit
from tests.chaos.stage import WELL, Stage
from tests.e2e import oracle
from tests.e2e.load import customers
from tests.e2e.scene import AUTHORIZED
from tests.e2e.traffic import Emitter, Receiver
from tests.support.daemon_process import COMMAND, ROOT, Installation
from tests.support.own_server import OwnServer
from tests.support.postgres import fresh_database

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

HEADROOM_KB: Final = 16_000
"""Above what it has at a light load."""
BURST: Final = MAILBOX
"""Events at a time for each of the HUNGRY, as many as an actor has in memory at once: 50 MB in all."""
BODY_BYTES: Final = 200_000
HUNGRY: Final = customers(number=40)[30:38]
SLOW_MS: Final = 500
PER_SECOND: Final = 100
RESTARTED_S: Final = 10.0
EMIT_LARGE: Final = """
    WITH emitted AS (
        SELECT emitted.*, customer FROM generate_series(1, %(count)s) AS n, unnest(%(customers)s::text[]) AS customer,
            LATERAL dealix.emit(customer, 'deal.won', json_build_object('n', n, 'filler', repeat('x', %(bytes)s))::text)
                AS emitted)
    INSERT INTO ledger SELECT event_id, customer, 'deal.won', matched FROM emitted
"""
EMIT: Final = "/api/v1/ecosystem/events/emit"


class Supervisor:
    """What systemd is to the service: starts the daemon again, and keeps what was in flight when it died."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.cut_off: set[oracle.Claim] = set()
        self.recoveries: list[float] = []
        self.daemon = stage.start()

    def restart(self, emitter: Emitter) -> None:
        """It was killed; returns when deliveries go on."""
        assert self.daemon.exit_code == -signal.SIGKILL
        died_at = time.monotonic()
        self.stage.wait_until_dead()
        self.cut_off |= self.stage.scene.claims()
        self.daemon = self.stage.start()
        self.recoveries.append(self.stage.resumed_after(emitter, died_at, within_s=30))

    def renew(self) -> None:
        """Stop it and start another: one that has had a burst in memory keeps some room for the next."""
        assert self.daemon.stop() == 0
        self.daemon = self.stage.start()

    def judge(self, emitter: Emitter) -> tuple[oracle.Verdict, set[oracle.Claim]]:
        """The verdict, and what a duplicate may be of."""
        verdict = self.stage.judge(emitter)
        in_flight = self.stage.received() & self.cut_off
        assert verdict.repeated <= in_flight, "a duplicate of something that no kill cut off"
        assert verdict.interrupted <= self.cut_off
        return verdict, in_flight


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def limit() -> Iterator[MemoryLimit]:
    with memory_limit() as made:
        yield made


@pytest.fixture
def limited(limit: MemoryLimit, tmp_path: Path) -> Iterator[Installation]:
    """Starts daemons whose memory can be limited."""
    installed = Installation(tmp_path, command=(*limit.command, *COMMAND))
    yield installed
    installed.end()
    assert installed.complaints() == []


def test_a_daemon_that_is_killed_for_its_memory_goes_on_after_its_restart(
    migrated_database: str,
    limit: MemoryLimit,
    limited: Installation,
    receiver: Receiver,
    tmp_path: Path,
    enter: Enter,
) -> None:
    supervisor, times = Supervisor(Stage.on(migrated_database, limited, receiver, tmp_path)), 3
    stage = supervisor.stage
    stage.invite(supervisor.daemon, sick=False)
    for name in HUNGRY:
        stage.scene.subscribe(supervisor.daemon, name, delay_ms=SLOW_MS)
    with stage.load(PER_SECOND) as emitter:
        for _ in range(times):
            supervisor.renew()
            emitter.go_on(200)
            limit.leave(supervisor.daemon, HEADROOM_KB)
            stage.scene.rows(EMIT_LARGE, {"count": BURST, "customers": list(HUNGRY), "bytes": BODY_BYTES})
            limit.wait_until_killed(supervisor.daemon, within_s=30)
            supervisor.restart(emitter)
            oracle.wait_until_arrived(stage.scene, within_s=60)
    verdict, in_flight = supervisor.judge(emitter)
    bound = f"in flight at the kills: {len(in_flight)}"
    enter("C18", f"killed for its memory (limit kept by {limit.name})", times, verdict, emitter, bound=bound,
          recovery_s=max(supervisor.recoveries))  # fmt: skip
    assert max(supervisor.recoveries) < RESTARTED_S
    assert supervisor.daemon.stop() == 0


# -- temporary files --------------------------------------------------------------------------------------------------

# The disk is itself in one of them, which therefore comes last; and nothing could be started from a checkout there.
HIDDEN: Final = [place for place in ("/var/tmp", "/tmp") if not ROOT.is_relative_to(place)]
OVER: Final = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    f'for place in {" ".join(HIDDEN)}; do mount --bind "$0" $place || exit 1; done; exec "$@"',
)
"""A program for which the directory that is named next stands where temporary files go; it becomes what follows."""


@pytest.fixture
def full() -> Iterator[Path]:
    """A directory that takes no byte more."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare (util-linux) is not installed")
    with small_disk("1m", mode="1777") as disk:
        Ballast(disk).fill()
        with pytest.raises(OSError, match="No space left"):
            (disk / "more").write_bytes(b"more")
        yield disk


@pytest.fixture
def crowded(full: Path, tmp_path: Path) -> Iterator[Installation]:
    """Starts daemons for which every place for temporary files is full."""
    installed = Installation(tmp_path, command=(*OVER, str(full), *COMMAND))
    yield installed
    installed.end()
    assert installed.complaints() == []


@pytest.mark.parametrize("own_cluster", ["18"], indirect=True)
def test_a_daemon_without_room_for_temporary_files_works_and_restarts(
    own_server: OwnServer, full: Path, crowded: Installation, receiver: Receiver, tmp_path: Path, enter: Enter
) -> None:
    environ = {"TMPDIR": str(full), "DEALIX_DATABASE__POOL_SIZE": 4}
    stage = Stage.on(fresh_database(own_server.url), crowded, receiver, tmp_path, environ)
    supervisor, times = Supervisor(stage), 3
    stage.invite(supervisor.daemon, sick=False)
    with stage.load(PER_SECOND) as emitter:
        for n in range(times):
            emitter.go_on(200)
            event = {
                "customer_id": WELL[n],
                "event_type": "deal.won",
                "payload": {"filler": "x" * BODY_BYTES},
                "event_id": f"large-{n}",
            }
            answer = httpx.post(f"{supervisor.daemon.api}{EMIT}", json=event, headers=AUTHORIZED, timeout=10)
            assert answer.status_code == 202
            row = (f"large-{n}", WELL[n], answer.json()["matched"])
            stage.scene.rows("INSERT INTO ledger VALUES (%s, %s, 'deal.won', %s)", row)
            supervisor.daemon.kill()
            supervisor.restart(emitter)
    verdict, in_flight = supervisor.judge(emitter)
    bound = f"in flight at the kills: {len(in_flight)}"
    enter("C18", "/tmp full, SIGKILL of the daemon", times, verdict, emitter, bound=bound,
          recovery_s=max(supervisor.recoveries))  # fmt: skip
    assert max(supervisor.recoveries) < RESTARTED_S
    assert supervisor.daemon.stop() == 0
