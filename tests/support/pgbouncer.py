"""Debian's PgBouncer in transaction mode, before a Postgres of the tests, under an unprivileged account."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg

from daemon.embedded_postgres.account import account_for
from daemon.embedded_postgres.processes import Surroundings, spawn
from tests.support.daemon_process import until
from tests.support.own_server import PASSWORD, OwnServer, free_port

PROGRAM: Final = Path("/usr/sbin/pgbouncer")
START_S: Final = 10.0
_INI: Final = """
[databases]
* = host=127.0.0.1 port={server_port}{more}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {home}/users
pool_mode = transaction
default_pool_size = {sessions}
max_client_conn = 200
admin_users = dealix
"""


class PgBouncer:
    """`sessions` on the server are shared by all clients; fewer than those, so that they really are."""

    def __init__(self, home: Path, server: OwnServer, *, sessions: int, connect_query: str) -> None:
        self.port = free_port()
        self._home = home
        self._account = account_for(home, home / "none")
        self._process: subprocess.Popen[bytes] | None = None
        more = f" connect_query='{connect_query}'" if connect_query else ""
        self._write(
            "ini", _INI.format(server_port=server.port, port=self.port, home=home, sessions=sessions, more=more)
        )
        self._write("users", f'"dealix" "{PASSWORD}"\n')
        os.chown(home, self._account.uid, self._account.gid)

    def url(self, direct: str) -> str:
        """The URL through it, of the database that `direct` leads to."""
        netloc = f"dealix:{PASSWORD}@127.0.0.1:{self.port}"
        return urlunsplit(urlsplit(direct)._replace(netloc=netloc))

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        with (self._home / "log").open("ab") as log:
            around = Surroundings(self._account, self._home, log.fileno())
            self._process = spawn([PROGRAM, self._home / "ini"], around, ends_by=signal.SIGKILL)
        until(self._answers, within_s=START_S, what=(self._home / "log").read_text())

    def kill(self) -> None:
        """SIGKILL; clients and servers lose their connections."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_S)
            self._process = None

    def shown(self, what: str) -> list[dict[str, object]]:
        """The rows of its SHOW `what`."""
        with psycopg.connect(
            self.url("postgresql:///pgbouncer"), autocommit=True, cursor_factory=psycopg.ClientCursor
        ) as connection:
            cursor = connection.execute(f"SHOW {what}".encode())
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._home / "log").read_text()
        try:
            return bool(self.shown("VERSION"))
        except psycopg.OperationalError:
            return False

    def _write(self, name: str, text: str) -> None:
        path = self._home / name
        path.write_text(text)
        path.chmod(0o600)
        os.chown(path, self._account.uid, self._account.gid)


@contextmanager
def open_pgbouncer(server: OwnServer, *, sessions: int = 4, connect_query: str = "") -> Generator[PgBouncer]:
    """One that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="dealix-bouncer-") as home:
        bouncer = PgBouncer(Path(home), server, sessions=sessions, connect_query=connect_query)
        bouncer.start()
        try:
            yield bouncer
        finally:
            bouncer.kill()
