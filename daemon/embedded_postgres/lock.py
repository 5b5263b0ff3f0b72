"""One server for a data directory: a flock that is free only when the last process of the former server has ended."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from daemon.embedded_postgres.processes import ORPHAN_GRACE_S, holders, kill_orphans
from daemon.errors import EmbeddedPostgresFailed

POLL_S: Final = 0.02


class LockTaken(EmbeddedPostgresFailed):
    """Another process holds this data directory."""


def acquire(path: Path, cluster: Path, timeout_s: float) -> int:
    """The descriptor of the held lock; closing it gives it up. Waits for the former server's real exit.

    The descriptor belongs to the caller and to all that inherit it, so a server that outlives its daemon for a moment
    still holds it. A plain number, not a file object: no garbage collection closes it behind our back.
    Raises LockTaken, naming the holders, when `timeout_s` have passed.
    """
    return take(path, fcntl.LOCK_EX, timeout_s, lambda: kill_orphans(cluster))


def take(path: Path, operation: int, timeout_s: float, meanwhile: Callable[[], None] = lambda: None) -> int:
    """The descriptor of a flock of either kind; closing it gives it up.

    `meanwhile` is called again and again once the wait takes longer than those who leave by themselves need.
    Raises LockTaken after `timeout_s`, and OSError.
    """
    begun = time.monotonic()
    while (descriptor := _try(path, operation)) is None:
        waited_s = time.monotonic() - begun
        if waited_s > timeout_s:
            raise LockTaken(f"{path} is still held after {waited_s:.1f} s, by {holders(path)}")
        if waited_s > ORPHAN_GRACE_S:
            meanwhile()
        time.sleep(POLL_S)
    return descriptor


def open_owned(path: Path, flags: int) -> int:
    """Opens `path`, if need be made with mode 0600 and for its directory's owner: root's help must stay usable.

    A link is never followed. Raises OSError.
    """
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            os.close(descriptor)  # somebody has put another name of one of root's files here, say
            raise PermissionError(errno.EPERM, "not a plain file of one name", str(path)) from None
        return descriptor
    if os.geteuid() == 0:
        home = path.parent.stat()
        os.fchown(descriptor, home.st_uid, home.st_gid)
    return descriptor


def _try(path: Path, operation: int) -> int | None:
    descriptor = open_owned(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except OSError as e:
        os.close(descriptor)
        if isinstance(e, BlockingIOError):
            return None
        raise
    return descriptor
