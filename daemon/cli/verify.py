"""`dealix verify`: whether a request was signed with a secret, and if not, what is wrong, in words."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from typing import Final

import click

from daemon import clock
from daemon.policy.signing import PREFIX, Mac, standard_key

TOLERANCE_S: Final = 300


@click.command()
@click.option(
    "--header", "given", metavar="'NAME: VALUE'", multiple=True, required=True, help="As received; repeatable."
)
@click.option("--body", metavar="TEXT", default="-", help="The body as received; - (the default) is standard input.")
@click.option("--secret", envvar="DEALIX_WEBHOOK_SECRET", required=True, help="whsec_…; else DEALIX_WEBHOOK_SECRET.")
@click.option("--tolerance-s", type=click.IntRange(1), default=TOLERANCE_S, show_default=True, help="Greatest age.")
def verify(given: tuple[str, ...], body: str, secret: str, tolerance_s: int) -> None:
    """Check the signature of a received request, Dealix-Signature or webhook-signature, and say what is wrong with it.

    \b
    Examples:
      dealix verify --secret whsec_… --header 'Dealix-Signature: t=1790000000,v1=…' < body.json
      dealix verify --header 'webhook-id: evt_…' --header 'webhook-timestamp: 1790000000' \\
                    --header 'webhook-signature: v1,…' --body '{"api_version":"v1",…}'
    """  # noqa: D301 \b is click's
    headers = {name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in given)}
    content = sys.stdin.buffer.read() if body == "-" else body.encode("utf-8", "surrogateescape")
    if "dealix-signature" not in headers and "webhook-signature" not in headers:
        raise click.UsageError("Give --header 'Dealix-Signature: …', or webhook-id, webhook-timestamp and -signature.")
    faults: list[str] = []
    for name in ("dealix-signature", "webhook-signature"):
        if name in headers:
            found = list(_faults(name, headers, content, secret, tolerance_s))
            click.echo(f"{name}: {'valid' if not found else 'NOT valid'}")
            faults += [f"{name}: {fault}" for fault in found]
    if faults:
        raise click.ClickException("\n".join(faults))


def _faults(name: str, headers: dict[str, str], body: bytes, secret: str, tolerance_s: int) -> Iterator[str]:
    """What is wrong with one of the two signatures; nothing if it holds."""
    if not secret.startswith(PREFIX):
        yield "the secret does not begin with whsec_: it is used whole, as it was shown"
    try:
        t, signatures = _stripe(headers[name]) if name == "dealix-signature" else _standard(headers)
    except ValueError as e:
        yield str(e)
        return
    age_s = clock.unix_s() - t
    if abs(age_s) > tolerance_s:
        when = f"{age_s} s ago" if age_s > 0 else f"{-age_s} s in the future"
        yield f"it was signed {when}, and {tolerance_s} s are allowed: an old request, or a clock that is wrong"
    key = secret.encode() if name == "dealix-signature" else standard_key(secret)
    if key is None:
        yield "the text after whsec_ is not base64, so the secret is not good for Standard Webhooks"
        return
    mac = Mac(key)
    lead = f"{t}." if name == "dealix-signature" else f"{headers['webhook-id']}.{t}."
    if mac.digest(lead.encode() + body) not in signatures:
        yield _why(mac, lead.encode(), body, signatures)


def _why(mac: Mac, lead: bytes, body: bytes, signatures: list[bytes]) -> str:
    """A body that was changed on the way is the usual cause: those that can be undone are tried."""
    stripped = body.rstrip(b"\r\n")
    if stripped != body and mac.digest(lead + stripped) in signatures:
        return "it holds without the line end after the body: verify the body as it came, before anything touches it"
    try:
        compact = json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, RecursionError):
        return "no signature matches, and the body is not JSON: is it whole, and of this request?"
    if compact != body and mac.digest(lead + compact) in signatures:
        return "it holds for the same JSON without blanks: the body was parsed and written again; verify the raw bytes"
    return "no signature matches: another secret (rotated since?), or the body or the time was changed"


def _stripe(header: str) -> tuple[int, list[bytes]]:
    """The t and every v1. Raises ValueError that says what is missing."""
    parts = [(name.strip(), value) for name, _, value in (one.partition("=") for one in header.split(","))]
    times = [value for name, value in parts if name == "t" and value.isascii() and value.isdigit()]
    if not times:
        raise ValueError("there is no t=<unix seconds>: is this the whole header?")
    found = [value for name, value in parts if name == "v1"]
    if not found:
        raise ValueError("there is no v1=<hex>: is this the whole header?")
    try:
        return int(times[0]), [bytes.fromhex(value) for value in found]
    except ValueError:
        raise ValueError("v1 is not hexadecimal") from None


def _standard(headers: dict[str, str]) -> tuple[int, list[bytes]]:
    """The timestamp and every v1 signature. Raises ValueError that says what is missing."""
    for name in ("webhook-id", "webhook-timestamp"):
        if name not in headers:
            raise ValueError(f"{name} is missing, and is part of what is signed")
    text = headers["webhook-timestamp"]
    if not (text.isascii() and text.isdigit()):
        raise ValueError("webhook-timestamp is not a number of seconds")
    found = [one.removeprefix("v1,") for one in headers["webhook-signature"].split() if one.startswith("v1,")]
    if not found:
        raise ValueError("there is no v1,<base64>: is this the whole header?")
    try:
        return int(text), [base64.b64decode(one, validate=True) for one in found]
    except ValueError:
        raise ValueError("the text after v1, is not base64") from None
