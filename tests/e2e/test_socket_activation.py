"""A socket that the service manager holds: a restart refuses no connection and breaks none."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.e2e.figures import Tell
from tests.e2e.held_socket import asking, daemons_on, wait_for_more
from tests.e2e.scene import Scene
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import COMMAND, Installation, until

RESTARTS: Final = 3


@pytest.mark.timeout(150)  # each start is that of a whole process
def test_over_restarts_no_connection_is_refused_and_every_request_is_answered(
    migrated_database: str, receiver: Receiver, tmp_path: Path, tell: Tell
) -> None:
    scene = Scene(migrated_database, receiver)
    scene.open()
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        installation = daemons_on(listener, tmp_path)
        try:
            daemon = installation.start(migrated_database)
            port = listener.getsockname()[1]
            assert daemon.api == f"http://127.0.0.1:{port}"
            with asking(port) as asked:
                wait_for_more(asked)
                for _ in range(RESTARTS):
                    assert daemon.stop() == 0
                    daemon = installation.start(migrated_database)
                    wait_for_more(asked)
            assert daemon.stop() == 0
        finally:
            installation.end()
    longest = max(one.took_s for one in asked)
    tell(f"{len(asked)} requests over {RESTARTS} restarts, all answered; the longest took {longest:.2f} s")
    assert [one for one in asked if one.end != 200] == []
    assert installation.complaints() == []


def test_without_a_daemon_connections_wait_for_the_next_one(migrated_database: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        installation = daemons_on(listener, tmp_path)
        try:
            with socket.create_connection(listener.getsockname()) as early:
                early.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                daemon = installation.start(migrated_database)
                early.settimeout(10)
                assert early.recv(100).startswith(b"HTTP/1.1 200")
            assert daemon.stop() == 0
        finally:
            installation.end()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_descriptor_that_does_not_listen_is_a_clear_error(
    migrated_database: str, tmp_path: Path, kind: socket.SocketKind
) -> None:
    with socket.socket(socket.AF_INET, kind) as passed:
        installation = daemons_on(passed, tmp_path)
        try:
            daemon = installation.start(migrated_database, ready=False)
            assert daemon.wait() == 78
            assert "LISTEN_FDS: descriptor 3 does not listen" in daemon.text()
            assert "Traceback" not in daemon.text()
        finally:
            installation.end()


def test_systemds_own_way_of_passing_a_socket_is_understood(migrated_database: str, tmp_path: Path) -> None:
    if shutil.which("systemd-socket-activate") is None:
        (pytest.fail if "CI" in os.environ else pytest.skip)("systemd-socket-activate is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    passing = ("systemd-socket-activate", "-l", f"127.0.0.1:{port}")
    settings = [f"-E{name}" for name in ("PATH", "DEALIX_DATA_DIR", "DEALIX_SEALING_KEY", "DEALIX_DATABASE__URL")]
    installation = Installation(tmp_path, command=(*passing, *settings, *COMMAND))
    try:
        daemon = installation.start(migrated_database, ready=False)
        until(lambda: "Listening on" in daemon.text(), within_s=10, what="a socket")
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=30).status_code == 200
        assert daemon.api == f"http://127.0.0.1:{port}"
        assert daemon.stop() == 0
    finally:
        installation.end()
