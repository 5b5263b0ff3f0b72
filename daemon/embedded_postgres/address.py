"""How to reach the server: a directory that fits into a socket's address, its URL, and word for other processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

from daemon.embedded_postgres.cluster import SOCKET, Cluster
from daemon.embedded_postgres.lock import open_owned
from daemon.errors import EmbeddedPostgresFailed

NAME: Final = "dealix"
"""The superuser and the database."""

SUN_PATH_BYTES: Final = 107
"""unix(7): sun_path is 108 bytes with its closing NUL."""

SHORT_HOME_BYTES: Final = SUN_PATH_BYTES - len("/dealix-4294967295-0123456789ab/pg/") - len(SOCKET)


def url_through(directory: Path) -> str:
    """The libpq URL of the server whose socket is reached through `directory`. The port is told: PGPORT may be set."""
    return f"postgresql://{NAME}@/{NAME}?host={quote(os.fsencode(directory), safe='/')}&port=5432"


def socket_directory(cluster: Cluster) -> Path:
    """A short name for the cluster's directory: its own, or a link to it in a private directory.

    The server never meets the limit, only clients do. (A comma would make libpq read two hosts.) The link is made again
    where a cleaner of temporary files has removed it.
    Raises EmbeddedPostgresFailed where no place for it can be had.
    """
    plain = cluster.path
    if len(os.fsencode(plain / SOCKET)) <= SUN_PATH_BYTES and "," not in str(plain):
        return plain
    digest = hashlib.sha256(os.fsencode(plain)).hexdigest()[:12]
    faults: list[str] = []
    for home in _short_homes():
        link = home / f"dealix-{os.geteuid()}-{digest}" / "pg"
        try:
            _link(link, plain)
        except OSError as e:
            faults.append(f"{link.parent}: {e.strerror}")
        else:
            return link
    raise EmbeddedPostgresFailed(f"{plain} is too long for a socket, and has no short name; {'; '.join(faults)}")


def withdraw(cluster: Cluster) -> None:
    """Removes the link and its private directory, if there are any."""
    with contextlib.suppress(OSError, EmbeddedPostgresFailed):
        directory = socket_directory(cluster)
        if directory != cluster.path:
            directory.unlink()
            directory.parent.rmdir()


def publish(cluster: Cluster) -> None:
    """Writes down the directory, for `published` elsewhere. It is left behind: a connection tells if it holds."""
    directory = os.fsencode(socket_directory(cluster))
    if published(cluster) == Path(os.fsdecode(directory)):
        return
    fresh = cluster.address.with_name(cluster.address.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(open_owned(fresh, os.O_WRONLY), "wb") as file:
        file.write(directory)
    fresh.rename(cluster.address)


def published(cluster: Cluster) -> Path | None:
    """The directory that the last server was reached through, None where there was none or we may not look."""
    try:
        return Path(os.fsdecode(cluster.address.read_bytes()))
    except OSError:
        return None


def _short_homes() -> list[Path]:
    """Where short private directories may be made, best first. Not TMPDIR: it may be long, and differs by process."""
    told = Path(os.environ.get("XDG_RUNTIME_DIR") or "/")
    runtime = Path("/run") if os.geteuid() == 0 else told
    fits = runtime != Path("/") and len(os.fsencode(runtime)) <= SHORT_HOME_BYTES
    return ([runtime] if fits else []) + [Path("/tmp")]  # noqa: S108 — a 0700 directory in it, whose owner is checked


def _link(link: Path, target: Path) -> None:
    home = link.parent
    try:
        home.mkdir(mode=0o700)
    except FileExistsError:
        found = home.lstat()
        if home.is_symlink() or not home.is_dir() or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(0, "it exists and is not this account's alone") from None
    if not link.is_symlink() or link.readlink() != target:
        link.unlink(missing_ok=True)
        link.symlink_to(target)
