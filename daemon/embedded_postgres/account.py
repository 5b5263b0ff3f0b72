"""Whose account the embedded Postgres runs under."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daemon.errors import EmbeddedPostgresFailed

UNPRIVILEGED: Final = ("postgres", "nobody")
"""What root drops to for new data, best first. initdb wants an account with a passwd entry; we never make one."""


@dataclass(frozen=True, slots=True)
class Account:
    """The uid and gid of the server's processes. `switched`: not our own, so a child has to change to them."""

    uid: int
    gid: int
    switched: bool


def account_for(data_dir: Path, cluster: Path) -> Account:
    """The account that owns the cluster, or the one that will own it.

    Existing data decides by its owner: a `postgres` account that appears later must not lock us out of data that
    `nobody` owns. Raises EmbeddedPostgresFailed where that owner cannot be used.
    """
    owner = _owner(cluster)
    own_uid = os.geteuid()
    if own_uid != 0:
        if owner is not None and owner.uid != own_uid:
            raise EmbeddedPostgresFailed(f"{cluster} belongs to uid {owner.uid}, this process runs as uid {own_uid}")
        return Account(own_uid, os.getegid(), switched=False)
    if owner is not None and owner.uid == 0:
        raise EmbeddedPostgresFailed(f"{cluster} belongs to root, and Postgres refuses to run as root: chown it")
    # where there is no data yet: root that helps out an ordinary user must leave data which that user can open
    owner = owner or _owner(data_dir)
    return owner if owner is not None and owner.uid != 0 else _unprivileged()


def _owner(path: Path) -> Account | None:
    """Who owns an existing path; the group is the account's own, or the path's where the account has no entry."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    try:
        gid = pwd.getpwuid(found.st_uid).pw_gid
    except KeyError:
        gid = found.st_gid
    return Account(found.st_uid, gid, switched=os.geteuid() != found.st_uid)


def _unprivileged() -> Account:
    for name in UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid, switched=True)
    raise EmbeddedPostgresFailed(f"running as root, and there is no account to drop to ({', '.join(UNPRIVILEGED)})")
