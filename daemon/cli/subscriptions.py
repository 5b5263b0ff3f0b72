"""`dealix subscriptions import`: take over existing subscriptions with their ids and secrets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, Literal

import click
import msgspec

from config.settings import Egress
from daemon.cli.shared import config_option, settings_from, with_database
from daemon.errors import EndpointUrlInvalid, ImportConflict, SubscriptionLimit
from daemon.ids import CUSTOMER_ID, SUBSCRIPTION_ID, CustomerId, SubscriptionId
from daemon.key_file import load_key_ring
from daemon.policy import endpoint_url
from daemon.policy.signing import PREFIX
from daemon.sealing import KeyRing
from daemon.store import event_types
from daemon.store.connection import Connection
from daemon.store.subscription_import import import_one
from daemon.store.subscriptions import NewRow, fit_for_standard_webhooks

_MAX_LINE_BYTES: Final = 64 * 1024
_MAX_SECRET_CHARACTERS: Final = 256
_SHOWN_FAULTS: Final = 50
_DEADLINE_S: Final = 600.0


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of the file."""

    id: str
    customer_id: str
    endpoint_url: str
    secret: str
    events: list[str] = []
    description: str | None = None
    propagate_trace_context: bool = False
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was read well: its number in the file, and what it asks for."""

    number: int
    row: NewRow


class FileFaults(click.ClickException):
    """Everything that is wrong with the file, a line for each fault; nothing was imported."""

    def __init__(self, faults: Sequence[tuple[int, str]]) -> None:
        shown = [f"line {number}: {fault}" for number, fault in sorted(faults)[:_SHOWN_FAULTS]]
        if len(faults) > _SHOWN_FAULTS:
            shown.append(f"… and {len(faults) - _SHOWN_FAULTS} more")
        super().__init__("\n".join([*shown, "Nothing was imported."]))


@click.group()
def subscriptions() -> None:
    """Take over subscriptions from elsewhere."""


@subscriptions.command("import")
@click.argument("file", metavar="FILE", type=click.File("rb"))
@config_option
def import_(file: BinaryIO, config_file: Path | None) -> None:
    """Import the subscriptions in FILE (- for standard input) with their ids and secrets: all of them, or none.

    FILE is JSON Lines, one object a line with id, customer_id, endpoint_url and secret, and if wanted events (none:
    every type), description, propagate_trace_context and enabled. All lines are checked before the first is imported. A
    line that is imported already is left alone, so that the same file may be imported again; an id that exists with
    other contents is refused. A secret whose text after whsec_ is not standard base64 keeps its Dealix-Signature, but
    gets no webhook-signature until it is rotated.

    \b
    Example line:
      {"id": "whk_0123456789abcdef01234567", "customer_id": "acme", "endpoint_url": "https://example.com/hook",
       "events": ["deal.won"], "description": null, "secret": "whsec_…", "enabled": true}      (on one line)
    """  # noqa: D301 \b is click's
    settings = settings_from(config_file)
    lines = read_lines(file, settings.egress)
    ring = load_key_ring(settings)
    counts = with_database(settings, partial(_import_all, ring=ring, lines=lines), deadline_s=_DEADLINE_S)
    click.echo(f"imported {counts['imported']}, unchanged {counts['unchanged']}")
    unfit = [line.row.id for line in lines if not fit_for_standard_webhooks(line.row.secret)]
    if unfit:
        click.echo(
            f"{len(unfit)} secrets are not standard base64: their requests carry Dealix-Signature, but no "
            "webhook-signature (Standard Webhooks) until POST /webhooks/{id}/rotate-secret:"
        )
        for subscription_id in unfit:
            click.echo(f"  {subscription_id}")


def read_lines(file: BinaryIO, egress: Egress) -> list[Line]:
    """Every line of the file. Raises FileFaults with all that is wrong, except what only the database knows."""
    lines: list[Line] = []
    faults: list[tuple[int, str]] = []
    seen: dict[str, int] = {}
    for number, text in enumerate(iter(partial(file.readline, _MAX_LINE_BYTES + 1), b""), 1):
        if len(text) > _MAX_LINE_BYTES:
            raise FileFaults([*faults, (number, "has more than 64 KiB; is this JSON Lines?")])
        if not text.strip():
            continue
        try:
            record = msgspec.json.decode(text, type=Record)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            faults.append((number, str(e)))
            continue
        found = [*_faults(record)]
        if record.id in seen:
            found.append(f"id: the same as in line {seen[record.id]}")
        seen.setdefault(record.id, number)
        try:
            url = endpoint_url.parse(
                record.endpoint_url, allow_localhost=egress.allow_localhost, allow_networks=egress.allow_networks
            ).url
        except EndpointUrlInvalid as e:
            found.append(str(e))
        else:
            lines.append(Line(number, _row(record, url)))
        faults += [(number, fault) for fault in found]
    if faults:
        raise FileFaults(faults)
    return lines


def _faults(record: Record) -> list[str]:
    faults: list[str] = []
    if not SUBSCRIPTION_ID.fullmatch(record.id):
        faults.append("id: must be whk_ and 24 hex digits")
    if not CUSTOMER_ID.fullmatch(record.customer_id):
        faults.append("customer_id: must be 1 to 64 characters of A-Z a-z 0-9 _ . : -")
    if record.description is not None and (len(record.description) > 255 or not record.description.isprintable()):
        faults.append("description: must be at most 255 characters, all printable")
    if not (
        record.secret.startswith(PREFIX)
        and len(PREFIX) < len(record.secret) <= _MAX_SECRET_CHARACTERS
        and all("!" <= character <= "~" for character in record.secret)
    ):
        faults.append("secret: must be whsec_ and up to 250 printable ASCII characters")
    return faults


def _row(record: Record, url: str) -> NewRow:
    return NewRow(
        id=SubscriptionId(record.id),
        customer_id=CustomerId(record.customer_id),
        endpoint_url=url,
        events=list(dict.fromkeys(record.events)),
        description=record.description,
        secret=record.secret,
        enabled=record.enabled,
        propagate_trace_context=record.propagate_trace_context,
    )


async def _import_all(
    conn: Connection, *, ring: KeyRing, lines: Sequence[Line]
) -> dict[Literal["imported", "unchanged"], int]:
    faults: list[tuple[int, str]] = []
    counts: dict[Literal["imported", "unchanged"], int] = {"imported": 0, "unchanged": 0}
    unknown = set(await event_types.unknown(conn, {event for line in lines for event in line.row.events}))
    async with conn.transaction():
        # In the customers' order, since each is locked until the end: two imports at once wait, and do not deadlock.
        for line in sorted(lines, key=lambda line: line.row.customer_id):
            faults += [
                (line.number, f"events: unknown type {event!r}") for event in line.row.events if event in unknown
            ]
            try:
                counts[await import_one(conn, ring, line.row)] += 1
            except (ImportConflict, SubscriptionLimit) as e:
                faults.append((line.number, str(e)))
        if faults:
            raise FileFaults(faults)  # and the transaction rolls back
    return counts
