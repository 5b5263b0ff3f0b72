"""`dealix emit`: one event from the shell."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from daemon.cli.shared import config_option, customer_id_given, settings_from, with_database
from daemon.ids import CustomerId
from daemon.store import emit as store
from daemon.store.connection import Connection


@click.command()
@click.option(
    "--customer", "customer_id", metavar="ID", callback=customer_id_given, required=True, help="Whose event it is."
)
@click.option("--type", "event_type", metavar="TYPE", required=True, help="One of GET /event-types, as deal.won.")
@click.option("--data", metavar="JSON", required=True, help="The payload, a JSON object; - reads standard input.")
@click.option("--event-id", metavar="ID", help="An id of your own: the same one again makes no second event.")
@config_option
def emit(customer_id: str, event_type: str, data: str, event_id: str | None, config_file: Path | None) -> None:
    """Emit one event. Prints its id and how many subscriptions matched it.

    \b
    Examples:
      dealix emit --customer acme --type deal.won --data '{"deal_id": 7}'
      dealix emit --customer acme --type deal.won --event-id order-7 --data - < deal.json
    """  # noqa: D301 \b is click's
    payload = sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if data == "-" else data
    try:
        json.loads(payload, parse_int=str, parse_float=str)  # numbers of any length are fine
    except ValueError as e:  # the database says that too, but not where
        raise click.ClickException(f"--data is not valid JSON: {e}") from None
    except RecursionError:
        raise click.ClickException("--data is nested more than 100 deep") from None

    async def act(conn: Connection) -> store.Emitted:
        return await store.emit(conn, CustomerId(customer_id), event_type, payload, event_id)

    emitted = with_database(settings_from(config_file), act)
    click.echo(f"{emitted.event_id}  matched {emitted.matched}")
