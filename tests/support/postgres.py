"""Real Postgres servers for the tests: the embedded one and Debian's, each started once for a whole run."""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from daemon.embedded_postgres import EmbeddedPostgres
from daemon.embedded_postgres.account import account_for
from daemon.embedded_postgres.processes import Surroundings, spawn

DEBIAN_BIN: Final = Path("/usr/lib/postgresql/15/bin")
START_S: Final = 30.0


def fresh_database(url: str) -> str:
    """The URL of a newly made, empty database on the server of `url`."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def embedded_server() -> Iterator[str]:
    """The libpq URL of an embedded Postgres; each test makes its own `fresh_database` on it."""
    with tempfile.TemporaryDirectory(prefix="dealix-embedded-") as home:  # pytest's own would be kept for three runs
        server = EmbeddedPostgres.start(Path(home))
        yield server.url
        server.stop()


@pytest.fixture(scope="session")
def debian_postgres() -> Iterator[str]:
    """The libpq URL of Debian's Postgres 15, an operator's own server as far as the product is concerned."""
    if not DEBIAN_BIN.is_dir():
        (pytest.fail if "CI" in os.environ else pytest.skip)(f"{DEBIAN_BIN} is not there")
    with tempfile.TemporaryDirectory(prefix="dealix-debian-") as home, _debian_server(Path(home)) as url:
        yield url


@contextmanager
def _debian_server(home: Path) -> Generator[str]:
    data = home / "data"
    account = account_for(home, data)
    data.mkdir(mode=0o700)
    for place in (home, data):  # /proc/self/cwd is not enough: version 15 walks back to where it was by name
        os.chown(place, account.uid, account.gid)
    with (home / "log").open("ab") as log:
        surroundings = Surroundings(account, data, log.fileno())
        options = ("-U", "dealix", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        made = spawn([DEBIAN_BIN / "initdb", "-D", data, *options], surroundings, ends_by=signal.SIGKILL)
        assert made.wait(START_S) == 0, (home / "log").read_text()
        settings = (
            "listen_addresses=",
            "unix_socket_directories=.",
            "max_prepared_transactions=10",
            "max_connections=60",
        )
        command = [DEBIAN_BIN / "postgres", "-D", data, *(f"--{setting}" for setting in settings)]
        server = spawn(command, surroundings, ends_by=signal.SIGINT)
        try:
            url = f"postgresql://dealix@/dealix?host={data}&port=5432"
            _create_when_ready(url, home / "log")
            yield url
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(START_S)


def _create_when_ready(url: str, log: Path) -> None:
    ends_at = time.monotonic() + START_S
    while True:
        try:
            with psycopg.connect(url, dbname="postgres", autocommit=True) as connection:
                connection.execute("CREATE DATABASE dealix")
        except psycopg.OperationalError:
            assert time.monotonic() < ends_at, log.read_text()
            time.sleep(0.02)
        else:
            return
