"""Databases that are migrated already: copied from a template, since a copy takes 30 ms and the migrations longer.

The servers run as long as the tests do, so nothing here closes them. Tests are in no transaction unless they open one.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import trio
from psycopg import sql

from daemon.store.connection import Connection, connect
from daemon.store.migrate import migrate
from daemon.store.partitions import make_ahead
from tests.support.postgres import fresh_database

DAYS_AHEAD: Final = 3
SETUP_S: Final = 30.0


def migrated_template(server_url: str) -> str:
    """The URL of a database on the server of `server_url` with the schema and a few days' partitions."""
    url = fresh_database(server_url)
    with psycopg.connect(url, autocommit=True) as connection:
        # Making and dropping databases is mostly fsync: half a second for each test. This server is for tests alone.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")

    async def prepare() -> None:
        with trio.fail_after(SETUP_S):
            async with await connect(url, timeout_s=SETUP_S, application_name="template") as conn:
                await migrate(conn)
                await make_ahead(conn, days=DAYS_AHEAD)

    trio.run(prepare)
    return url


def copy_of(template_url: str) -> str:
    """The URL of a new database with everything that the template has. Nobody may be connected to the template."""
    template = urlsplit(template_url).path.removeprefix("/")
    name = f"test_{secrets.token_hex(6)}"
    server = urlunsplit(urlsplit(template_url)._replace(path="/postgres"))
    with psycopg.connect(server, autocommit=True) as connection:
        command = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(command.format(sql.Identifier(name), sql.Identifier(template)))
    return urlunsplit(urlsplit(template_url)._replace(path=f"/{name}"))


def drop(url: str) -> None:
    """Remove a database, whoever is connected."""
    server = urlunsplit(urlsplit(url)._replace(path="/postgres"))
    with psycopg.connect(server, autocommit=True) as connection:
        name = sql.Identifier(urlsplit(url).path.removeprefix("/"))
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))


@pytest.fixture(scope="session")
def embedded_template(embedded_server: str) -> str:
    return migrated_template(embedded_server)


@pytest.fixture(scope="session")
def debian_template(debian_postgres: str) -> str:
    return migrated_template(debian_postgres)


@pytest.fixture
def migrated_database(embedded_template: str) -> Iterator[str]:
    """The libpq URL of a fresh database on the embedded server, dropped after the test.

    It has the whole schema, partitions for yesterday to three days from now, and no customer's rows.
    """
    url = copy_of(embedded_template)
    yield url
    drop(url)


@pytest.fixture
def debian_database(debian_template: str) -> Iterator[str]:
    """As `migrated_database`, on Debian's Postgres 15."""
    url = copy_of(debian_template)
    yield url
    drop(url)


@pytest.fixture(params=["embedded", pytest.param("debian", marks=pytest.mark.external_postgres)])
def any_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `migrated_database`, once on each server: for what may depend on Postgres' version."""
    url = copy_of(request.getfixturevalue(f"{request.param}_template"))
    yield url
    drop(url)


@pytest.fixture
async def conn(migrated_database: str) -> AsyncGenerator[Connection]:
    """A session on `migrated_database`, in autocommit."""
    async with await connect(migrated_database, timeout_s=5, application_name="test") as connection:
        yield connection
