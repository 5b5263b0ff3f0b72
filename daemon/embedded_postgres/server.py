"""The supervisor: start the embedded Postgres, look after it, stop it, or attach to one that runs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import psycopg

from daemon.embedded_postgres import cluster as clusters
from daemon.embedded_postgres import lock as locks
from daemon.embedded_postgres import processes
from daemon.embedded_postgres.account import Account, account_for
from daemon.embedded_postgres.cluster import Cluster
from daemon.embedded_postgres.installation import binaries_for
from daemon.embedded_postgres.log_file import LogFile
from daemon.errors import EmbeddedPostgresFailed

ENFORCED: Final = (
    "-c", "listen_addresses=", "-c", "port=5432", "-c", "unix_socket_directories=.", "-c", "unix_socket_permissions=0700",
    "-c", "log_destination=stderr", "-c", "logging_collector=off",
)  # fmt: skip
"""What our way of reaching the server and its log depends on. On the command line, where ALTER SYSTEM cannot undo it."""

POLL_S: Final = 0.01
QUIT_S: Final = 6.0
"""After SIGQUIT the postmaster itself SIGKILLs its children after 5 s."""


class EmbeddedPostgres:
    """A running server that ends with this process, however that ends. All methods block and want the main thread."""

    def __init__(self, cluster: Cluster, account: Account, binaries: Path, lock: int, log: LogFile) -> None:
        self._cluster = cluster
        self._account = account
        self._binaries = binaries
        self._lock = lock
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.url = clusters.url_through(clusters.socket_directory(cluster))
        """libpq URL over the unix socket. It stays the same for the life of the server, restarts included."""

    @classmethod
    def start(cls, data_dir: Path, *, timeout_s: float = 60) -> Self:
        """Starts the server on `data_dir` and returns when it answers; the first time it makes the data (0.9 s).

        Waits for a predecessor's real exit. Raises EmbeddedPostgresFailed after `timeout_s`, or at once where waiting
        would not help; LockTaken where another process still holds the data.
        """
        if sys.platform != "linux":
            raise EmbeddedPostgresFailed("the embedded Postgres is for Linux: set database.url to a server of your own")
        ends_at = time.monotonic() + timeout_s
        cluster = Cluster(_absolute(data_dir))
        with contextlib.ExitStack() as undo:
            try:
                cluster.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = locks.acquire(cluster.lock, cluster.path, timeout_s)
                undo.callback(os.close, lock)
                log = LogFile.open(cluster.log)
                undo.callback(log.close)
                log.trim()
                clusters.refuse_other_versions(cluster)
                account = account_for(cluster.data_dir, cluster.path)
                binaries = binaries_for(account, cluster.data_dir)
                clusters.initialise(
                    cluster, account, binaries, log, lock=lock, timeout_s=max(1.0, ends_at - time.monotonic())
                )
                server = cls(cluster, account, binaries, lock, log)
                server._launch(ends_at)
            except OSError as e:
                raise EmbeddedPostgresFailed(f"{data_dir}: {e}") from e
            undo.pop_all()
        return server

    @property
    def pid(self) -> int:
        """The postmaster's; another one after a restart, 0 when stopped."""
        return self._process.pid if self._process else 0

    def ensure_running(self, timeout_s: float = 1.0) -> bool:
        """Starts the postmaster again if it died; True if it had to.

        Some microseconds while it is alive. After a death it waits at most `timeout_s` for the new one to answer, since
        the caller's event loop stands still meanwhile: recovery goes on behind it, and connections succeed when it is
        done. Raises EmbeddedPostgresFailed if the new one died at once (a full disk, say): call again later.
        """
        if self._process is None:
            raise EmbeddedPostgresFailed("the embedded Postgres was stopped")
        self._log.trim()
        if self._process.poll() is None:
            clusters.socket_directory(self._cluster)
            return False
        try:
            self._launch(time.monotonic() + timeout_s, patient=False)
        except OSError as e:
            raise EmbeddedPostgresFailed(f"the embedded Postgres cannot be started again: {e}") from e
        return True

    def stop(self, timeout_s: float = 10) -> None:
        """Fast shutdown: open transactions are rolled back, a checkpoint is written, nothing is left running.

        After `timeout_s` it is made to quit without the checkpoint, then killed; committed rows survive both.
        A second call does nothing.
        """
        process, self._process = self._process, None
        if process is None:
            return
        try:
            for step, patience_s in ((signal.SIGINT, timeout_s), (signal.SIGQUIT, QUIT_S), (signal.SIGKILL, QUIT_S)):
                process.send_signal(step)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(patience_s)
                    break
            _await_end_of_orphans(self._cluster, time.monotonic() + QUIT_S)
        finally:
            self._cluster.address.unlink(missing_ok=True)
            self._log.close()
            os.close(self._lock)

    def _launch(self, ends_at: float, *, patient: bool = True) -> None:
        """Runs a postmaster, if need be several in turn, until one answers or, if not `patient`, merely lives on."""
        while True:
            _await_end_of_orphans(self._cluster, ends_at)
            clusters.forget_stale_pid(self._cluster)
            clusters.write_settings(self._cluster, self._account)
            mark = self._log.size()
            self._process = process = processes.spawn(
                [self._binaries / "postgres", "-D", clusters.as_seen_by(self._account, self._cluster.path), *ENFORCED],
                self._account, cwd=self._cluster.path, output=self._log.descriptor, keep=[self._lock], ends_by=signal.SIGINT,
            )  # fmt: skip
            while process.poll() is None:
                if _answers(self.url):
                    self._publish()
                    return
                if time.monotonic() > ends_at:
                    if not patient:
                        self._publish()
                        return
                    self.stop()
                    raise EmbeddedPostgresFailed(
                        f"the embedded Postgres does not answer in time; {self._log.tail(mark)}"
                    )
                time.sleep(POLL_S)
            if not processes.members(self._cluster.path):
                raise EmbeddedPostgresFailed(
                    f"the embedded Postgres ended with {process.returncode}; {self._log.tail(mark)}"
                )

    def _publish(self) -> None:
        """Writes down how to reach the server, for `running_url` in other processes."""
        fresh = self._cluster.address.with_name(self._cluster.address.name + ".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(locks.open_owned(fresh, os.O_WRONLY), "wb") as file:
            file.write(os.fsencode(clusters.socket_directory(self._cluster)))
        fresh.rename(self._cluster.address)


def running_url(data_dir: Path) -> str | None:
    """The URL of the server that runs on `data_dir`, judged by a connection to it, else None."""
    try:
        directory = Path(os.fsdecode(Cluster(_absolute(data_dir)).address.read_bytes()))
    except OSError:
        return None
    url = clusters.url_through(directory)
    return url if _answers(url) else None


@contextlib.contextmanager
def attached(data_dir: Path) -> Iterator[str]:
    """The URL of the running server, else of one that runs for the block alone. Raises EmbeddedPostgresFailed."""
    ends_at = time.monotonic() + 60
    while True:
        if (url := running_url(data_dir)) is not None:
            yield url
            return
        try:
            server = EmbeddedPostgres.start(data_dir, timeout_s=1)
        except locks.LockTaken:
            if time.monotonic() > ends_at:  # somebody else's start never gets ready
                raise
            continue
        try:
            yield server.url
        finally:
            server.stop()
        return


def _answers(url: str) -> bool:
    """Whether a session can be opened; makes the database where the server has it not yet."""
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError as e:
        if f'database "{clusters.NAME}" does not exist' not in str(e):
            return False
        with psycopg.connect(url, dbname="postgres", autocommit=True, connect_timeout=2) as connection:
            connection.execute(f"CREATE DATABASE {clusters.NAME}")
    return True


def _await_end_of_orphans(cluster: Cluster, ends_at: float) -> None:
    """Returns when no process of a former postmaster is left; those that linger are killed."""
    patience_at = time.monotonic() + locks.ORPHAN_GRACE_S
    while processes.members(cluster.path):
        if time.monotonic() > patience_at:
            processes.kill_orphans(cluster.path)
        if time.monotonic() > ends_at:
            left = ", ".join(f"pid {member.pid} ({member.title})" for member in processes.members(cluster.path))
            raise EmbeddedPostgresFailed(f"processes of a former server still work in {cluster.path}: {left}")
        time.sleep(POLL_S)


def _absolute(data_dir: Path) -> Path:
    return Path(os.path.abspath(data_dir.expanduser()))
