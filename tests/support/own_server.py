"""A Postgres that a test may freeze, kill and restart: on TCP, with a password, as a direct child of the test run."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest

from daemon.embedded_postgres.account import account_for
from daemon.embedded_postgres.installation import binaries_for
from daemon.embedded_postgres.processes import Surroundings, kill_orphans, members, spawn
from tests.support.postgres import DEBIAN_BIN

PASSWORD: Final = "correct-horse-battery"
START_S: Final = 30.0
CONNECTIONS: Final = 30
"""That it takes: two daemons and what watches them."""
_SETTINGS: Final = ("fsync=off", f"max_connections={CONNECTIONS}", "shared_buffers=8MB", "listen_addresses=127.0.0.1")


class OwnServer:
    """One cluster under `home`, made at once and started by `start`. All methods block."""

    def __init__(self, home: Path, binaries: Path | None) -> None:
        self.data = home / "data"
        self.port = free_port()
        self.url = f"postgresql://dealix:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        self._home = home
        self._account = account_for(home, self.data)
        self._bin = binaries or binaries_for(self._account, home)
        self._process: subprocess.Popen[bytes] | None = None
        self.data.mkdir(mode=0o700)
        for path in (home, self.data):
            os.chown(path, self._account.uid, self._account.gid)
        assert self._make().wait(START_S) == 0, self.log()

    def start(self, *settings: str) -> None:
        """Start it and wait until it takes connections."""
        words = [word for setting in (*_SETTINGS, f"port={self.port}", *settings) for word in ("-c", setting)]
        self._process = self._spawn("postgres", "-D", self.data, "-c", "unix_socket_directories=", *words)
        ends_at = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < ends_at, self.log()
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """SIGKILL of the postmaster; its orphans too, as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(START_S)
        self.thaw()
        kill_orphans(self.data)
        while members(self.data):
            time.sleep(0.005)
        self._process = None

    def stop(self) -> None:
        """A fast shutdown, which tells every client."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(START_S)
        self._process = None

    def restart(self) -> None:
        """A fast shutdown and a new start."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP of all of its processes: sockets stay open, nothing answers. Undone by `thaw`."""
        self._signal(signal.SIGSTOP)
        self._signal(signal.SIGSTOP)  # those that the postmaster forked meanwhile

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._signal(signal.SIGCONT)

    def running(self) -> bool:
        """Whether it was started and not ended by a test."""
        return self._process is not None

    @property
    def major(self) -> int:
        """Its major version."""
        return int((self.data / "PG_VERSION").read_text())

    def put(self, name: str, content: bytes) -> None:
        """A file in the data directory, as the server insists to have it: its own and private."""
        path = self.data / name
        path.write_bytes(content)
        path.chmod(0o600)
        os.chown(path, self._account.uid, self._account.gid)

    def log(self) -> str:
        """What it said."""
        return (self._home / "log").read_text()

    def _make(self) -> subprocess.Popen[bytes]:
        """The program that fills the data directory."""
        secret = self._home / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        words = ("-U", "dealix", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--locale=C", "--no-sync")
        return self._spawn("initdb", "-D", self.data, *words, *self._more())

    def _more(self) -> tuple[str, ...]:
        """What else initdb is told."""
        return ()

    def _signal(self, number: signal.Signals) -> None:
        for member in members(self.data):
            with contextlib.suppress(ProcessLookupError):  # a backend that ends by itself just now
                os.kill(member.pid, number)

    def _spawn(self, program: str, *words: str | Path) -> subprocess.Popen[bytes]:
        with (self._home / "log").open("ab") as log:
            around = Surroundings(self._account, self.data, log.fileno())
            return spawn([self._bin / program, *words], around, ends_by=signal.SIGKILL)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session", params=["18", pytest.param("15", marks=pytest.mark.external_postgres)])
def own_cluster(request: pytest.FixtureRequest) -> Iterator[OwnServer]:
    with tempfile.TemporaryDirectory(prefix="dealix-own-") as home:  # pytest's are closed to an unprivileged account
        server = OwnServer(Path(home), DEBIAN_BIN if request.param == "15" else None)
        server.start()
        yield server
        if server.running():
            server.kill()


@pytest.fixture
def own_server(own_cluster: OwnServer) -> Iterator[OwnServer]:
    """A server that runs when the test begins; the test may freeze, kill and restart it."""
    if not own_cluster.running():
        own_cluster.start()
    yield own_cluster
    own_cluster.thaw()
