"""`dealix secrets`: the keys that seal the subscriptions' secrets in the database."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Final

import click
import trio

from daemon.cli.shared import config_option, settings_from, with_database
from daemon.key_file import KeyFile, decode, load_key_ring, new_key
from daemon.sealing import KeyRing, key_id_of
from daemon.store import sealed
from daemon.store.connection import Connection

_DEADLINE_S: Final = 3600.0
"""A million subscriptions take some minutes."""
_LOOK_S: Final = 0.2
_LOCKED_S: Final = 30.0
"""How long somebody else's transaction may keep a row from being sealed anew."""


@click.group()
def secrets() -> None:
    """Look after the keys that seal the subscriptions' secrets."""


@secrets.command("list")
@config_option
def list_(config_file: Path | None) -> None:
    """List the sealing keys by their ids: what each does, and how many subscriptions' secrets need it."""
    settings = settings_from(config_file)
    ring = load_key_ring(settings)
    needed = {use.key_id: use.subscriptions for use in with_database(settings, sealed.uses)}
    rows = [("ID", "DOES", "NEEDED BY")]
    for key_id in [*ring.key_ids, *(needed.keys() - set(ring.key_ids))]:
        does = "seals" if key_id == ring.sealing_id else "opens" if key_id in ring.key_ids else "MISSING"
        rows.append((key_id.hex(), does, f"{needed.get(key_id, 0)} subscriptions"))
    for key, does, by in rows:
        click.echo(f"{key:<16}  {does:<7}  {by}")


@secrets.command()
@click.option(
    "--key-file",
    metavar="FILE",
    type=click.File("rb"),
    help="Rotate to the key in FILE (base64 of 32 bytes; - reads standard input) instead of a new one.",
)
@click.option(
    "--wait-s",
    metavar="SECONDS",
    type=click.FloatRange(min=0, max=_DEADLINE_S / 3),
    default=15.0,
    show_default=True,
    help="How long running daemons may take to hold the key; they look into the file twice a second.",
)
@config_option
def rotate(key_file: BinaryIO | None, wait_s: float, config_file: Path | None) -> None:
    """Seal all secrets with a new key, while daemons run. What was broken off goes on where it stopped.

    The former key stays until `dealix secrets drop`: a backup of the database may still need it. Where the key is a
    credential, put the new one before the old one there (a line each) and restart every daemon; then this command seals
    everything with it.

    \b
    Examples:
      dealix secrets rotate
      openssl rand -base64 32 | dealix secrets rotate --key-file -
    """  # noqa: D301 \b is click's
    settings = settings_from(config_file)
    given = None if key_file is None else decode(key_file.read().decode("ascii", "replace"), "--key-file")[0]
    if settings.sealing_key is not None and given is not None:
        raise click.UsageError("The sealing key is a credential: put the new key into it, before the old one.")
    ring = load_key_ring(settings)

    async def act(conn: Connection) -> None:
        await _begin(conn, ring)
        if settings.sealing_key is None:
            await _change_key(conn, KeyFile(settings.data_dir), ring, given, wait_s)
        else:
            await _follow(conn, ring.sealing_id, sealing=True, wait_s=wait_s)
        await _reseal(conn, ring)

    with_database(settings, act, deadline_s=_DEADLINE_S)


@secrets.command()
@click.argument("key_id", metavar="ID")
@config_option
def drop(key_id: str, config_file: Path | None) -> None:
    """Take the sealing key with this ID (from `dealix secrets list`) out, if nothing needs it any more.

    A backup of the database from before its rotation cannot be used without it: keep a copy as long as such a backup.
    """
    settings = settings_from(config_file)
    ring = load_key_ring(settings)
    wanted = next((one for one in ring.key_ids if one.hex() == key_id), None)
    if wanted is None:
        raise click.ClickException(f"there is no sealing key with the ID {key_id}: see `dealix secrets list`")

    async def act(conn: Connection) -> None:
        await _begin(conn, ring)
        await _refuse_in_use(conn, ring, wanted)
        if settings.sealing_key is not None:
            click.echo(f"Nothing needs {key_id}: take its line out of the credential, then restart the daemons.")
            return
        KeyFile(settings.data_dir).drop(wanted)
        click.echo(f"{key_id} is dropped.")

    with_database(settings, act)


async def _begin(conn: Connection, ring: KeyRing) -> None:
    if not await sealed.try_rotate(conn):
        raise click.ClickException("another rotation is going on")
    if lacking := await sealed.missing(conn, ring):
        raise click.ClickException(f"a sealing key is not there, but in use: {sealed.say(lacking)}")


async def _refuse_in_use(conn: Connection, ring: KeyRing, key_id: bytes) -> None:
    if key_id == ring.sealing_id:
        raise click.ClickException(f"{key_id.hex()} is the key that seals: run `dealix secrets rotate` first")
    # A daemon that still seals with it would need it a moment later.
    await _follow(conn, ring.sealing_id, sealing=True, wait_s=0)
    if needed := [use for use in await sealed.uses(conn) if use.key_id == key_id]:
        raise click.ClickException(f"in use: {sealed.say(needed)}. Run `dealix secrets rotate` first")


async def _change_key(conn: Connection, file: KeyFile, ring: KeyRing, given: bytes | None, wait_s: float) -> None:
    """Make a new key the one that seals, here and in every running daemon; or go on with what was begun."""
    begun = file.next_id()
    if begun is None:
        await _begin_key(conn, file, ring, given)
    elif given is not None and key_id_of(given) != begun:
        raise click.ClickException(f"a rotation to {begun.hex()} was begun: finish it, without --key-file, first")
    wanted = file.next_id() or ring.sealing_id
    await _follow(conn, wanted, sealing=False, wait_s=wait_s)
    file.promote()
    ring.adopt(file.ring())
    await _follow(conn, wanted, sealing=True, wait_s=wait_s)


async def _begin_key(conn: Connection, file: KeyFile, ring: KeyRing, given: bytes | None) -> None:
    if given is None:
        if any(use.key_id != ring.sealing_id for use in await sealed.uses(conn)):
            click.echo("Going on with a rotation that was not finished.")
        else:
            file.begin(new_key())
    elif key_id_of(given) not in ring.key_ids:
        file.begin(given)
    elif key_id_of(given) != ring.sealing_id:
        raise click.ClickException(f"{key_id_of(given).hex()} was a sealing key before: give a new one")


async def _follow(conn: Connection, key_id: bytes, *, sealing: bool, wait_s: float) -> None:
    """Wait until every running daemon holds a key, or seals with it."""
    ends_at = trio.current_time() + wait_s
    while count := await sealed.behind(conn, key_id, sealing=sealing):
        if trio.current_time() > ends_at:
            raise click.ClickException(
                f"{count} running daemons do not {'seal with' if sealing else 'hold'} the key {key_id.hex()}: give it "
                "to them (docs/operations.md), then run this again; it goes on where it stopped"
            )
        await trio.sleep(_LOOK_S)


async def _reseal(conn: Connection, ring: KeyRing) -> None:
    """Walk over all subscriptions until none is left that another key sealed and that opens."""
    count, ends_at = 0, trio.current_time() + _LOCKED_S
    while True:
        walk = await sealed.reseal(conn, ring)
        count += walk.subscriptions
        others = [use for use in await sealed.uses(conn) if use.key_id != ring.sealing_id]
        if sum(use.subscriptions for use in others) <= len(walk.unreadable):
            break
        if not walk.subscriptions and trio.current_time() > ends_at:
            raise click.ClickException("some subscriptions are locked by another transaction: run this again")
        await trio.sleep(_LOOK_S)
    click.echo(f"{count} subscriptions' secrets were sealed anew, with {ring.sealing_id.hex()}.")
    if walk.unreadable:
        click.echo(f"{len(walk.unreadable)} do not open and were left: {', '.join(walk.unreadable[:10])}")
    needed = {use.key_id for use in others}
    if free := [key_id.hex() for key_id in ring.key_ids[1:] if key_id not in needed]:
        click.echo(f"Nothing needs {', '.join(free)} any more: see `dealix secrets drop --help`.")
