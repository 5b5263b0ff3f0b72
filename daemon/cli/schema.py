"""`dealix migrate` and `dealix db-url`: the schema, and the way to the database."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import trio

from daemon.cli.shared import config_option, database, settings_from
from daemon.embedded_postgres import running_url
from daemon.store import migrate as store
from daemon.store.partitions import make_ahead
from daemon.store.sessions import Database

DAYS_AHEAD: Final = 90
"""As the daemon does it: emits fail on a day without a partition, and so long a daemon may be down."""

_DEADLINE_S: Final = 3600.0  # a migration may have to rewrite much


@click.command()
@config_option
def migrate(config_file: Path | None) -> None:
    """Bring the database's schema up to date, and make the partitions of the next 90 days.

    `dealix serve` does so too unless database.migrate = false. Needs a role that may create the schema `dealix`; where
    it may not create roles, the SQL that an administrator has to run is printed.
    """

    async def run(url: str) -> tuple[list[str], int, str | None]:
        async with Database(url, url).session("dealix migrate", _DEADLINE_S) as conn:
            applied = await store.migrate(conn)
            made = await make_ahead(conn, days=DAYS_AHEAD)
            return applied, made, await store.emitter_role_missing(conn)

    with database(settings_from(config_file)) as url:
        applied, made, missing = trio.run(run, url)
    for name in applied:
        click.echo(f"applied {name}")
    click.echo(f"The schema is up to date; {made} partitions were made." if made else "The schema is up to date.")
    if missing:
        click.echo("\nEmitters need a role that this one may not make. Let an administrator run, in this database:\n")
        click.echo(missing)


@click.command("db-url")
@config_option
def db_url(config_file: Path | None) -> None:
    """Print the libpq URL of the database in use, the embedded one included; with its password, if it has one.

    \b
    Example:
      psql "$(dealix db-url)"
    """  # noqa: D301 \b is click's
    settings = settings_from(config_file)
    url = running_url(settings.data_dir) if settings.database.embedded else settings.database.url.get_secret_value()
    if url is None:
        raise click.ClickException(
            f"the embedded Postgres in {settings.data_dir} is not running: start it with `dealix serve`"
        )
    click.echo(url)
