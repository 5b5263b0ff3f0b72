"""`dealix listen`: a customer's events on one's own machine, without a public address."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import click

from daemon.cli.shared import api_options, customer_id_given
from daemon.policy.signing import PREFIX, standard_key
from daemon.store.subscriptions import new_secret


def _url_given(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    try:
        fit = value is None or (urlsplit(value).scheme in {"http", "https"} and bool(urlsplit(value).hostname))
    except ValueError:
        fit = False
    if not fit:
        raise click.BadParameter("must be a URL such as http://localhost:3000/hook")
    return value


def _secret_given(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not (value.startswith(PREFIX) and value.isascii() and standard_key(value)):
        raise click.BadParameter("must be whsec_ and standard base64, as the secrets of endpoints are")
    return value


@click.command()
@click.option("--forward-to", "url", metavar="URL", callback=_url_given, help="POST each event here. Else it is shown.")
@click.option(
    "--customer", "customer_id", metavar="ID", callback=customer_id_given, help="Whose events; needed with an ops key."
)
@click.option("--events", "types", metavar="TYPES", help="Only these, as deal.won,deal.lost.")
@click.option(
    "--secret",
    envvar="DEALIX_WEBHOOK_SECRET",
    metavar="SECRET",
    callback=_secret_given,
    help="Sign with this one; else with DEALIX_WEBHOOK_SECRET, else with a fresh one.",
)
@click.option("--print-json", is_flag=True, help="Print each event's body on a line; all else goes to standard error.")
@api_options
def listen(  # noqa: PLR0913, PLR0917 the options
    url: str | None,
    customer_id: str | None,
    types: str | None,
    secret: str | None,
    print_json: bool,  # noqa: FBT001 click's way
    api_url: str | None,
    config_file: Path | None,
) -> None:
    """Receive a customer's live events and forward each to a local URL, signed as a delivery is. Ctrl-C ends it.

    What is emitted from "Ready." on comes once and in the order in which it became visible, also over a break of up to
    an hour. Each event is forwarded once: there are no retries. An event waits until all transactions that were open
    when it was emitted have ended. Needs a key in DEALIX_API_KEY.

    \b
    Examples:
      dealix listen --forward-to http://localhost:3000/hook
      dealix listen --customer acme --events deal.won --print-json
    """  # noqa: D301 \b is click's
    from daemon.cli.client import connected  # noqa: PLC0415 see there
    from daemon.cli.listening import Forwarder, Listening  # noqa: PLC0415 as above

    say = partial(click.echo, err=print_json)
    query = {name: value for name, value in (("customer_id", customer_id), ("events", types)) if value}
    secret = secret or new_secret()
    with connected(api_url, config_file) as api:
        if url:
            say(f"Forwarding to {url}, signed with {secret}")
        listening = Listening(api, query, Forwarder.to(url, secret) if url else None, say)
        if print_json:
            listening.on_event = lambda event: click.echo(event.body)
        listening.run()
