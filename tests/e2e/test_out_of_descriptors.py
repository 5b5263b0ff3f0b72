"""A process that may open few files: strangers get a share of them, deliveries have the rest."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e import oracle
from tests.e2e.figures import Tell
from tests.e2e.scene import Scene
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import COMMAND, Installation, until

FILES: Final = 64
EVENTS: Final = 60
STRANGERS: Final = 120


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.threat("N124")
def test_a_flood_of_connections_takes_no_descriptor_that_deliveries_need(
    migrated_database: str, receiver: Receiver, tmp_path: Path, tell: Tell
) -> None:
    prlimit = shutil.which("prlimit")
    assert prlimit is not None
    installation = Installation(tmp_path, command=(prlimit, f"--nofile={FILES}:{FILES}", *COMMAND))
    scene = Scene(migrated_database, receiver)
    scene.open()
    try:
        daemon = installation.start(migrated_database, environ={"DEALIX_DATABASE__POOL_SIZE": 4})
        endpoint = scene.subscribe(daemon, delay_ms=5)
        address = urlsplit(daemon.api)
        with contextlib.ExitStack() as stack:
            for _ in range(STRANGERS):
                stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=5))
            most = 0
            for _ in range(EVENTS):
                scene.emit()
                most = max(most, open_files(daemon.pid))
            receiver.wait_for(EVENTS, endpoint.name, within_s=20)
            began = time.monotonic()
            assert httpx.get(f"{daemon.api}/healthz", timeout=10).status_code == 200
            answered_s = time.monotonic() - began
        until(lambda: open_files(daemon.pid) < most, within_s=20, what="fewer files")
        tell(f"of {FILES} descriptors at most {most} were in use; a well-formed request took {answered_s:.2f} s")
        assert most < FILES
        assert scene.rows("SELECT DISTINCT outcome, attempt FROM dealix.attempts") == [("delivered", 1)]
        assert oracle.judge(scene).duplicates == 0
        assert daemon.stop() == 0
    finally:
        installation.end()
    assert installation.complaints() == []
