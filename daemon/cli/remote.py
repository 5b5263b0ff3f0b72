"""Commands for developers that ask the API: `dealix trigger`, `dealix replay`, `dealix deliveries tail`."""

from __future__ import annotations

import json
import secrets
import time
from datetime import timedelta
from pathlib import Path
from typing import Final, cast

import click

from daemon import clock, ids
from daemon.cli.shared import api_options, customer_id_given

_LOOK_S: Final = 1.0
_BEHIND: Final = timedelta(seconds=60)
"""An attempt's row is dated by its beginning and written after its end: newer ones may be there before it."""

_customer = click.option(
    "--customer", "customer_id", metavar="ID", callback=customer_id_given, help="Whose; needed with an ops key."
)


@click.command()
@click.argument("event_type", metavar="TYPE")
@_customer
@click.option("--endpoint", metavar="ID", help="Only to this subscription (whk_…), as a test-fire; any key may.")
@api_options
def trigger(
    event_type: str, customer_id: str | None, endpoint: str | None, api_url: str | None, config_file: Path | None
) -> None:
    """Send a sample event: the catalogue's example of TYPE. Its id begins with sample_, or it is marked as a test.

    Without --endpoint it is a real event of the customer's, to every subscription that wants it; this needs an ops key
    in DEALIX_API_KEY.

    \b
    Examples:
      dealix trigger deal.won --customer acme
      dealix trigger deal.won --endpoint whk_0a1b2c3d4e5f60718293a4b5
    """  # noqa: D301 \b is click's
    from daemon.cli.client import Json, connected  # noqa: PLC0415 see there

    with connected(api_url, config_file) as api:
        if endpoint:
            fired = api.post(f"/webhooks/{endpoint}/test", {"event_type": event_type})
            (attempt,) = cast("list[Json]", fired["deliveries"])
            click.echo(
                f"{fired['test_event']}  {attempt['status_code'] or attempt['error']}  {attempt['duration_ms']} ms"
            )
            return
        if not customer_id:
            raise click.UsageError("Give --customer ID (with an ops key), or --endpoint ID.")
        listed = cast("list[Json]", api.get("/event-types")["events"])
        examples = {one["type"]: one["example"] for one in listed}
        body: Json = {
            "customer_id": customer_id,
            "event_type": event_type,
            "payload": examples.get(event_type) or Json(),
            "event_id": "sample_" + secrets.token_hex(12),
        }
        emitted = api.post("/events/emit", body)
        click.echo(f"{emitted['event_id']}  matched {emitted['matched']}")


@click.command()
@click.argument("identifier", metavar="ID")
@_customer
@api_options
def replay(identifier: str, customer_id: str | None, api_url: str | None, config_file: Path | None) -> None:
    """Send once more: the delivery with this ID (dlv_…), or each of the event with this ID. Prints a line each.

    \b
    Example:
      dealix replay dlv_019b90a1c2640a1b2c3d4e5f
    """  # noqa: D301 \b is click's
    from daemon.cli.client import ApiRefused, Json, connected  # noqa: PLC0415 see there

    with connected(api_url, config_file) as api:
        if ids.ATTEMPT_ID.fullmatch(identifier):
            attempts = [identifier]
        elif ids.EVENT_ID.fullmatch(identifier):
            event = api.get(f"/events/{identifier}", {"customer_id": customer_id} if customer_id else None)
            last = (one["last_attempt_id"] for one in cast("list[Json]", event["deliveries"]))
            attempts = [str(one) for one in last if one]
            if not attempts:
                raise click.ClickException("No delivery of this event was attempted yet.")
        else:
            raise click.UsageError("ID must be that of a delivery (dlv_…) or of an event.")
        refused = 0
        for attempt_id in attempts:
            try:
                retried = api.post(f"/deliveries/{attempt_id}/retry")
            except ApiRefused as e:
                refused += 1
                click.echo(f"{attempt_id}: {e}", err=True)
            else:
                click.echo(f"{retried['event_id']}  {retried['subscription_id']}  attempt {retried['attempt']}")
        if refused:
            raise click.exceptions.Exit(1)


@click.group()
def deliveries() -> None:
    """Look at the log of deliveries."""


@deliveries.command()
@_customer
@click.option("--failed", is_flag=True, help="Only attempts that did not deliver.")
@click.option("--subscription", "subscription_id", metavar="ID", help="Only to this one (whk_…).")
@click.option("--print-json", is_flag=True, help="Print each attempt as a line of JSON.")
@api_options
def tail(  # noqa: PLR0913, PLR0917 the options
    customer_id: str | None,
    failed: bool,  # noqa: FBT001 click's way
    subscription_id: str | None,
    print_json: bool,  # noqa: FBT001 as above
    api_url: str | None,
    config_file: Path | None,
) -> None:
    """Print attempts as they are logged, from now on. Ctrl-C ends it.

    \b
    Example:
      dealix deliveries tail --failed
    """  # noqa: D301 \b is click's
    from daemon.cli.client import Json, connected  # noqa: PLC0415 see there

    query: dict[str, str | int | bool] = {"limit": 500, "failed_only": failed}
    query |= {name: one for name, one in (("customer_id", customer_id), ("subscription_id", subscription_id)) if one}
    seen: set[str] | None = None
    with connected(api_url, config_file) as api:
        while True:
            since = clock.iso(clock.now() - _BEHIND)
            rows: list[Json] = []
            cursor: object = ""
            while cursor is not None:
                page = api.get("/deliveries", query | {"since": since} | ({"cursor": str(cursor)} if cursor else {}))
                rows += cast("list[Json]", page["deliveries"])
                cursor = page["next_cursor"]
            if seen is None:
                click.echo("Waiting for attempts.", err=True)
            for row in reversed(rows if seen is not None else []):
                if row["id"] not in (seen or ()):
                    click.echo(json.dumps(row) if print_json else _line(row))
            seen = {str(row["id"]) for row in rows}
            time.sleep(_LOOK_S)


def _line(row: dict[str, object]) -> str:
    what = row["status_code"] or row["error"]
    return (
        f"{row['created_at']}  {row['id']}  {row['event_type']}  {row['event_id']}  "
        f"attempt {row['attempt']}  {what}  {row['duration_ms']} ms  {row['endpoint_url']}"
    )
