"""`dealix customers`: what is done about a customer as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click

from daemon import clock
from daemon.cli.shared import config_option, customer_id_given, settings_from, with_database
from daemon.ids import CustomerId
from daemon.store.connection import Connection
from daemon.store.purge import Purge

_DEADLINE_S: Final = 24 * 3600.0
_RECORD_S: Final = 15.0
"""What a result may take to be recorded after its request has ended; a busy database takes a hundredth."""


@click.group()
def customers() -> None:
    """Delete a customer with everything that belongs to it."""


@customers.command()
@click.argument("customer_id", metavar="ID", callback=customer_id_given)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
@config_option
def purge(customer_id: str, yes: bool, as_json: bool, config_file: Path | None) -> None:  # noqa: FBT001 click's way
    """Delete every row of the customer with this ID, in every table, and print a receipt.

    Keys and subscriptions, events with their payloads, deliveries, the log, statistics. Daemons may run; requests on
    their way are waited for. Stop emitting for the customer first: what is emitted later is stored again. Running it
    again is harmless. Backups and the database's own WAL keep what they have until they are gone.

    \b
    Example:
      dealix customers purge acme
    """  # noqa: D301 \b is click's
    settings = settings_from(config_file)
    if not yes:
        click.confirm(f"Delete everything of customer {customer_id}? It cannot be had again.", abort=True, err=True)

    async def act(conn: Connection) -> dict[str, int]:
        patience_s = settings.delivery.timeout_s + _RECORD_S
        return await Purge(conn, CustomerId(customer_id), patience_s=patience_s).run()

    rows = with_database(settings, act, deadline_s=_DEADLINE_S)
    if as_json:
        receipt = {"customer_id": customer_id, "purged_at": clock.iso(clock.now()), "rows": rows}
        click.echo(json.dumps(receipt | {"total": sum(rows.values())}))
        return
    click.echo(f"Purged customer {customer_id} at {clock.iso(clock.now())}: {sum(rows.values())} rows.")
    for name, count in rows.items():
        click.echo(f"{name:<20} {count:>12}")
