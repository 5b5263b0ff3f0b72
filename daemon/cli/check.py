"""`dealix check`: whether the daemon would start with this configuration, and could reach anything."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click
import trio

from config.settings import Settings
from daemon import tracing
from daemon.cli.shared import config_option, database, settings_from
from daemon.embedded_postgres import running_url
from daemon.errors import DealixError
from daemon.key_file import FILE_NAME, load_key_ring
from daemon.sealing import KeyRing
from daemon.store import migrate, once, sealed, subscriptions
from daemon.store.sessions import Database

_DATABASE_S: Final = 20.0
_EGRESS_S: Final = 5.0
_PROXY_VARIABLES: Final = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


class Failed(Exception):
    """A check that failed; the text is its reason."""


@click.command()
@config_option
def check(config_file: Path | None) -> None:
    """Check configuration, sealing key, database and the way out; exit 0 where the daemon would work, else 1 or 78.

    Nothing is made or changed: no data directory, no schema. The way out is judged by the hosts of the subscriptions
    that are enabled.
    """
    settings = settings_from(config_file)
    tracing.require(settings.traces)
    click.echo("ok      configuration")
    failed = False
    hosts: list[str] = []
    for name, run in (
        ("sealing key", lambda: _sealing_key(settings)),
        ("database", lambda: _database(settings, hosts)),
        ("egress", lambda: _egress(settings, hosts)),
    ):
        failed |= not _report(name, run)
    if failed:
        raise click.exceptions.Exit(1)


def _report(name: str, run: Callable[[], Iterator[str]]) -> bool:
    try:
        for note in run():
            click.echo(f"ok      {name}: {note}")
    except (Failed, DealixError) as e:
        click.echo(f"FAILED  {name}: {e}")
        return False
    return True


def _ring(settings: Settings) -> KeyRing | None:
    """The ring, unless only a start of the daemon would make its key."""
    if settings.sealing_key is None and not (settings.data_dir / FILE_NAME).exists():
        return None
    return load_key_ring(settings)


def _sealing_key(settings: Settings) -> Iterator[str]:
    place = "as configured" if settings.sealing_key else f"{settings.data_dir / FILE_NAME}"
    yield place if _ring(settings) else f"will be made at the first start, in {settings.data_dir}"


def _database(settings: Settings, hosts: list[str]) -> Iterator[str]:
    if settings.database.embedded and running_url(settings.data_dir) is None and not any(settings.data_dir.glob("pg*")):
        yield f"embedded, will be made at the first start, in {settings.data_dir}"
        return
    with database(settings) as url:
        yield from trio.run(_judge_database, settings, url, hosts)
    if settings.database.direct_url is not None:  # that was the one judged
        trio.run(_connect, settings.database.url.get_secret_value())
        yield "url answers as well as direct_url"


async def _connect(url: str) -> None:
    async with once.session(url, name="dealix check", deadline_s=_DATABASE_S):
        pass


async def _judge_database(settings: Settings, url: str, hosts: list[str]) -> list[str]:
    async with Database(url, url).session("dealix check", _DATABASE_S) as conn:
        notes = [f"Postgres {await once.server_version(conn)}"]
        if await migrate.is_empty(conn) and settings.database.migrate:
            return [*notes, "no schema yet, will be made at the first start"]
        await migrate.check_version(conn)
        notes.append("schema is up to date")
        ring = _ring(settings)
        if ring is not None and (lacking := await sealed.missing(conn, ring)):
            raise Failed(f"a sealing key is not there, but in use: {sealed.say(lacking)}")
        if missing := await migrate.emitter_role_missing(conn):
            notes.append("the role dealix_emitter is missing or may not emit; run: " + " ".join(missing.split()))
        hosts += await subscriptions.endpoint_hosts(conn)
        return notes


def _egress(settings: Settings, hosts: list[str]) -> Iterator[str]:
    proxy = settings.egress.proxy_url
    if proxy is not None:
        parts = urlsplit(proxy)
        if not _connects(parts.hostname or "", parts.port or 0):
            raise Failed(f"the proxy {parts.hostname}:{parts.port} does not accept connections")
        yield f"the proxy {parts.hostname}:{parts.port} accepts connections, and resolves names itself"
        return
    if variable := next((name for name in _PROXY_VARIABLES if os.environ.get(name)), None):
        yield f"{variable} is set, which is not read: set egress.proxy_url if requests must go through that proxy"
    silent = [host for host in hosts if not _resolves(host)]
    if hosts and len(silent) == len(hosts):
        raise Failed(f"no endpoint's name resolves ({', '.join(silent[:3])}): is there a name server?")
    yield f"{len(hosts) - len(silent)} of {len(hosts)} endpoints' names resolve" if hosts else "no endpoints yet"
    if silent:
        yield f"these do not: {', '.join(silent)}"


def _connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_EGRESS_S).close()
    except OSError:
        return False
    return True


def _resolves(host: str) -> bool:
    async def look_up() -> bool:
        with trio.move_on_after(_EGRESS_S):
            try:
                await trio.to_thread.run_sync(socket.getaddrinfo, host, None, abandon_on_cancel=True)
            except OSError:
                return False
            return True
        return False

    return trio.run(look_up)
