"""Using the server from a process that does not keep it, such as the command line: find it, or run one meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final

from daemon.embedded_postgres.address import published, url_through
from daemon.embedded_postgres.cluster import Cluster
from daemon.embedded_postgres.lock import LockTaken, take
from daemon.embedded_postgres.probe import answers
from daemon.embedded_postgres.server import EmbeddedPostgres
from daemon.errors import EmbeddedPostgresFailed

LOCK_S: Final = 1.0
"""How long one look waits for the lock before it tries again whether a server answers by now."""
GUESTS_S: Final = 30.0
"""How long a server that runs for one block alone stays for others that attached to it meanwhile."""


def running_url(data_dir: Path) -> str | None:
    """The URL of the server that runs on `data_dir`, judged by a connection to it, else None."""
    directory = published(Cluster.at(data_dir))
    if directory is None:
        return None
    url = url_through(directory)
    return url if answers(url) else None


@contextlib.contextmanager
def attached(data_dir: Path, *, timeout_s: float = 60) -> Generator[str]:
    """The URL of the running server, else of one that runs for the block alone.

    Guests are counted by a shared flock, so that two commands at once do not stop the server under each other; a daemon
    that stops does not wait for them. Raises EmbeddedPostgresFailed when none could be had within `timeout_s`.
    """
    cluster = Cluster.at(data_dir)
    ends_at = time.monotonic() + timeout_s
    while True:
        with _guest(cluster, ends_at):
            if (url := running_url(data_dir)) is not None:
                yield url
                return
        try:
            server = EmbeddedPostgres.start(data_dir, timeout_s=timeout_s, lock_s=LOCK_S)
        except LockTaken:  # somebody's server is about to answer, or to end
            if time.monotonic() > ends_at:
                raise
            continue
        try:
            yield server.url
        finally:
            _stop_without_guests(server, cluster)
        return


@contextlib.contextmanager
def _guest(cluster: Cluster, ends_at: float) -> Generator[None]:
    """Counted among the guests, if there is a data directory at all."""
    if not cluster.data_dir.exists():
        yield
        return
    try:
        ticket = take(cluster.guests, fcntl.LOCK_SH, ends_at - time.monotonic())
    except OSError as e:
        raise EmbeddedPostgresFailed(f"the embedded Postgres in {cluster.data_dir} cannot be used: {e}") from e
    try:
        yield
    finally:
        os.close(ticket)


def _stop_without_guests(server: EmbeddedPostgres, cluster: Cluster) -> None:
    ticket = None
    try:
        with contextlib.suppress(LockTaken):
            ticket = take(cluster.guests, fcntl.LOCK_EX, GUESTS_S)
    finally:
        server.stop()
        if ticket is not None:
            os.close(ticket)  # only now may others look: they find no server, and start one
