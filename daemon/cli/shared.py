"""What the commands share: the --config option, the settings it leads to, and a connection to the database in use."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import click
import trio

from config.settings import Settings, load
from daemon.embedded_postgres import attached
from daemon.ids import CUSTOMER_ID
from daemon.store import migrate
from daemon.store.connection import Connection
from daemon.store.partitions import make_ahead
from daemon.store.sessions import Database

_FIRST_DAYS: Final = 2
"""Partitions for a database that no daemon has seen yet; the daemon makes the others."""

_DEADLINE_S: Final = 60.0

_T = TypeVar("_T")
_P = ParamSpec("_P")


def config_option(command: Callable[_P, _T]) -> Callable[_P, _T]:
    """Add --config FILE, which arrives as the parameter `config_file: Path | None`."""
    return click.option(
        "--config",
        "config_file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="TOML file with settings; what it leaves out comes from the environment (DEALIX_…) or has its default.",
    )(command)


def api_options(command: Callable[_P, _T]) -> Callable[_P, _T]:
    """Add --api-url URL, which arrives as `api_url: str | None`, and --config FILE."""
    url = click.option(
        "--api-url",
        envvar="DEALIX_API_URL",
        metavar="URL",
        help="The API, as https://webhooks.example.com. Else DEALIX_API_URL, else the daemon on this machine.",
    )
    return url(config_option(command))


def settings_from(config_file: Path | None) -> Settings:
    """The settings of this invocation. Raises ConfigError."""
    return load(config_file, os.environ)


@contextmanager
def database(settings: Settings) -> Generator[str]:
    """The URL of the database in use, past a pooler: migrations and imports lock.

    An embedded one that no daemon runs is started for the block alone.
    """
    if settings.database.embedded:
        with attached(settings.data_dir) as url:
            yield url
    else:
        yield (settings.database.direct_url or settings.database.url).get_secret_value()


def with_database(
    settings: Settings, act: Callable[[Connection], Awaitable[_T]], *, deadline_s: float = _DEADLINE_S
) -> _T:
    """Run `act` on a connection to a database whose schema is this program's; see `database` for which.

    Raises DatabaseUnavailable, DatabaseRefused, SchemaMismatch, EmbeddedPostgresFailed and whatever `act` raises.
    """

    async def run(url: str) -> _T:
        async with Database(url, url).session("dealix command", deadline_s) as conn:
            if settings.database.migrate and await migrate.is_empty(conn):
                # Before the first start of the daemon: do as it would.
                await migrate.migrate(conn)
                await make_ahead(conn, days=_FIRST_DAYS)
            await migrate.check_version(conn)
            return await act(conn)

    with database(settings) as url:
        return trio.run(run, url)


def customer_id_given(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """The callback of options that take a customer_id: a usage error for what is none."""
    if value is not None and not CUSTOMER_ID.fullmatch(value):
        raise click.BadParameter("must be 1 to 64 characters of A-Z a-z 0-9 _ . : -")
    return value
