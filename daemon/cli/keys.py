"""`dealix keys`: make, list and revoke API keys."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from daemon import clock
from daemon.cli.shared import config_option, customer_id_given, settings_from, with_database
from daemon.ids import CustomerId
from daemon.store import api_keys
from daemon.store.api_keys import ApiKey
from daemon.store.connection import Connection


@click.group()
def keys() -> None:
    """Make, list and revoke the keys of the HTTP API."""


@keys.command()
@click.option(
    "--customer", "customer_id", metavar="ID", callback=customer_id_given, help="A key for this customer alone."
)
@click.option("--ops", is_flag=True, help="An operator's key: acts for every customer and may emit.")
@click.option(
    "--expires-in-days", "days", metavar="DAYS", type=click.IntRange(1, 3650), help="End it by itself then. Else never."
)
@config_option
def create(customer_id: str | None, ops: bool, days: int | None, config_file: Path | None) -> None:  # noqa: FBT001 click's way
    """Make a key and print it, alone, on standard output. It cannot be had again: only a digest is stored.

    \b
    Examples:
      dealix keys create --customer acme
      dealix keys create --customer acme --expires-in-days 90
      KEY=$(dealix keys create --ops)
    """  # noqa: D301 \b is click's
    if ops == (customer_id is not None):
        raise click.UsageError("Give either --customer ID or --ops.")

    async def act(conn: Connection) -> tuple[ApiKey, str]:
        valid_s = None if days is None else days * 86_400.0
        return await api_keys.create(conn, None if customer_id is None else CustomerId(customer_id), valid_s=valid_s)

    made, key = with_database(settings_from(config_file), act)
    click.echo(key)
    if sys.stderr.isatty():
        click.echo(f"{made.id}, {_whose(made)}. It is not shown again.", err=True)


@keys.command("list")
@config_option
def list_(config_file: Path | None) -> None:
    """List all keys, oldest first: id, whose, when made and last used, its state. The keys are not stored."""
    rows = [("ID", "WHOSE", "CREATED", "LAST USED", "STATE")]
    rows += [
        (
            key.id,
            _whose(key),
            clock.iso(key.created_at),
            clock.iso(key.last_used_at) if key.last_used_at else "never",
            _state(key),
        )
        for key in with_database(settings_from(config_file), api_keys.all_keys)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
@click.argument("key_id", metavar="ID")
@config_option
def revoke(key_id: str, config_file: Path | None) -> None:
    """End the key with this ID (from `dealix keys list`), on all replicas from the next request on.

    \b
    Example:
      dealix keys revoke key_0a1b2c3d4e5f60718293a4b5
    """  # noqa: D301 \b is click's
    if key_id.startswith("dlx_"):
        raise click.UsageError("That is a key. Give its ID, key_…, which `dealix keys list` shows.")

    async def act(conn: Connection) -> bool:
        return await api_keys.revoke(conn, key_id)

    if not with_database(settings_from(config_file), act):
        raise click.ClickException(f"there is no key with the ID {key_id}: see `dealix keys list`")
    click.echo(f"{key_id} is revoked.")


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {clock.iso(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"{'expired' if key.expires_at <= clock.now() else 'valid until'} {clock.iso(key.expires_at)}"


def _whose(key: ApiKey) -> str:
    return "ops" if key.customer_id is None else f"customer {key.customer_id}"
