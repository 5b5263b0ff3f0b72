"""The watchdog hears of the event loop's progress and of nothing else: see also a Postgres that freezes."""

from __future__ import annotations

import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

from tests.e2e.service_manager import open_service_manager
from tests.support.daemon_process import Installation, until

PERIOD_S = 1.2
BLOCKED_S = 4.0
STALLING = (
    "import signal, time\n"
    f"signal.signal(signal.SIGUSR1, lambda *_: time.sleep({BLOCKED_S}))\n"
    "from daemon.__main__ import main\n"
    "main()\n"
)
"""The daemon, with a signal that blocks its main thread as a bug in one of its tasks would."""


def test_a_loop_that_is_blocked_stops_feeding_the_watchdog_and_an_api_that_answers_does_not_help(
    migrated_database: str, tmp_path: Path
) -> None:
    installation = Installation(tmp_path, command=(sys.executable, "-c", STALLING, "serve"))
    with open_service_manager(tmp_path) as manager:
        environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": int(PERIOD_S * 1_000_000)}
        try:
            daemon = installation.start(migrated_database, environ=environ)
            manager.wait_for("WATCHDOG=1", len(manager.times("WATCHDOG=1")) + 3)
            began = time.monotonic()
            daemon.signal(signal.SIGUSR1)
            fed_again = until(
                lambda: [at for at in manager.times("WATCHDOG=1") if at > began + BLOCKED_S], within_s=10, what="a feed"
            )
            gaps = [later - earlier for earlier, later in pairwise(manager.times("WATCHDOG=1"))]
            assert max(gaps) > BLOCKED_S - PERIOD_S
            assert fed_again[0] - began < BLOCKED_S + 2
            assert daemon.stop() == 0
        finally:
            installation.end()
