"""A primary with a synchronous standby, by streaming replication: both are servers that a test may kill and freeze."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
from typing_extensions import override

from tests.support.daemon_process import until
from tests.support.own_server import PASSWORD, START_S, OwnServer

STANDBY: Final = "standby1"


class Standby(OwnServer):
    """A copy of a running primary, which follows it once it is started."""

    def __init__(self, home: Path, binaries: Path | None, primary: OwnServer) -> None:
        self._source = f"{primary.url}?application_name={STANDBY}"
        super().__init__(home, binaries)

    @override
    def _make(self) -> subprocess.Popen[bytes]:
        words = ("-d", self._source, "-X", "stream", "-R", "-C", "-S", STANDBY, "-c", "fast", "--no-sync")
        return self._spawn("pg_basebackup", "-D", self.data, *words)

    def promote(self) -> None:
        """Make it a primary; returns when it takes writes."""
        ask(self.url, f"SELECT pg_promote(true, {int(START_S)})")


@dataclass
class Replicated:
    """`standby` has whatever `primary` acknowledged."""

    primary: OwnServer
    standby: Standby

    def url(self, database: str) -> str:
        """The URL of both, for whoever wants to write."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in (self.primary, self.standby))
        return f"postgresql://dealix:{PASSWORD}@{hosts}/{database}?target_session_attrs=read-write"

    def synchronise(self) -> None:
        """From now on a COMMIT is answered when the standby has it."""
        ask(self.primary.url, f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
        ask(self.primary.url, "SELECT pg_reload_conf()")
        until(
            lambda: ask(self.primary.url, "SELECT sync_state FROM pg_stat_replication") == [("sync",)],
            within_s=START_S,
            what="a synchronous standby",
        )


@contextmanager
def replicated(binaries: Path | None = None) -> Generator[Replicated]:
    """Both servers, in step; the standby is a synchronous one after `synchronise`."""
    with tempfile.TemporaryDirectory(prefix="dealix-pair-") as place:
        homes = [Path(place, name) for name in ("one", "two")]
        Path(place).chmod(0o755)  # the servers' account walks through it
        for home in homes:
            home.mkdir()
        primary = OwnServer(homes[0], binaries)
        servers = [primary]
        try:
            primary.start()
            standby = Standby(homes[1], binaries, primary)
            servers.append(standby)
            standby.start()
            yield Replicated(primary, standby)
        finally:
            for server in servers:
                if server.running():
                    server.kill()


def ask(url: str, statement: LiteralString | str) -> list[tuple[object, ...]]:
    """What one statement answers, in a session of its own."""
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def at(url: str, server: OwnServer) -> str:
    """The same database, on one server alone."""
    parts = urlsplit(url)
    return urlunsplit(urlsplit(server.url)._replace(path=parts.path))
