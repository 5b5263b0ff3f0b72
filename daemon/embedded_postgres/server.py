"""The supervisor: start the embedded Postgres, look after it, stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Self

from daemon.embedded_postgres.account import account_for
from daemon.embedded_postgres.address import publish, socket_directory, url_through, withdraw
from daemon.embedded_postgres.cluster import (
    ENFORCED,
    Cluster,
    as_seen_by,
    forget_stale_pids,
    is_ready,
    refuse_other_versions,
    write_settings,
)
from daemon.embedded_postgres.ground import Ground
from daemon.embedded_postgres.initdb import initialise
from daemon.embedded_postgres.installation import binaries_for
from daemon.embedded_postgres.lock import acquire
from daemon.embedded_postgres.log_file import LogFile
from daemon.embedded_postgres.probe import answers
from daemon.embedded_postgres.processes import await_end_of_family, members
from daemon.errors import EmbeddedPostgresFailed

POLL_S: Final = 0.01
LEAST_S: Final = 5.0
"""What a start still gets when the wait for the lock used up its time."""
QUIT_S: Final = 2.0
"""For an end without a checkpoint, which takes milliseconds unless a process hangs, and for what SIGKILL leaves."""


class EmbeddedPostgres:
    """A running server that ends with this process, however that ends. All methods block and want the main thread."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._process: subprocess.Popen[bytes] | None = None
        self.url = url_through(socket_directory(ground.cluster))
        """libpq URL over the unix socket. It stays the same for the life of the server, restarts included."""

    @classmethod
    def start(cls, data_dir: Path, *, timeout_s: float = 60, lock_s: float | None = None) -> Self:
        """Starts the server on `data_dir` and returns when it answers; makes the data where there is none (0.8 s).

        Waits for a predecessor's real exit, `lock_s` at most if that is less. Raises EmbeddedPostgresFailed when
        `timeout_s` are over (a wait for the lock leaves 5 s at least), or at once where waiting would not help;
        LockTaken, one of those, where another process still holds the data.
        """
        if sys.platform != "linux":
            raise EmbeddedPostgresFailed("the embedded Postgres is for Linux: set database.url to a server of your own")
        ends_at = time.monotonic() + timeout_s
        with contextlib.ExitStack() as undo:
            try:
                ground = _take(Cluster.at(data_dir), timeout_s if lock_s is None else lock_s, undo)
                ends_at = max(ends_at, time.monotonic() + LEAST_S)
                if not ground.cluster.initialised:
                    initialise(ground, ends_at - time.monotonic())
                server = cls(ground)
                undo.callback(server._end, QUIT_S)
                server._launch(ends_at, patient=True)
            except OSError as e:
                raise EmbeddedPostgresFailed(f"the embedded Postgres cannot start in {data_dir}: {e}") from e
            undo.pop_all()
        return server

    @property
    def pid(self) -> int:
        """The postmaster's; another one after a restart, 0 once stopped."""
        return self._process.pid if self._process else 0

    def ensure_running(self, timeout_s: float = 1.0) -> bool:
        """Starts the postmaster again if it died; True if it had to.

        0.1 ms while it is alive. After a death it waits at most `timeout_s` for the new one to answer, since the
        caller's event loop stands still meanwhile: recovery goes on behind it, and connections succeed when that is
        done. Raises EmbeddedPostgresFailed where the new one died at once (a full disk, say): call again later.
        """
        if self._process is None:
            raise EmbeddedPostgresFailed("the embedded Postgres was stopped")
        try:
            self._ground.log.trim()
            if self._process.poll() is None:
                socket_directory(self._ground.cluster)  # its link, if it has one, may have been cleaned away
                return False
            self._launch(time.monotonic() + timeout_s, patient=False)
        except OSError as e:
            raise EmbeddedPostgresFailed(f"the embedded Postgres cannot be kept running: {e}") from e
        return True

    def stop(self, timeout_s: float = 10) -> None:
        """Fast shutdown: open transactions are rolled back, a checkpoint is written, nothing is left running.

        After `timeout_s` it is made to quit without the checkpoint, then killed; committed rows survive both.
        A second call does nothing.
        """
        if self._process is None:
            return
        try:
            self._end(timeout_s)
        finally:
            self._process = None
            withdraw(self._ground.cluster)
            self._ground.log.close()
            os.close(self._ground.lock)

    def _launch(self, ends_at: float, *, patient: bool) -> None:
        """Runs postmasters in turn until one answers. At `ends_at` one that lives is enough, unless `patient`."""
        cluster, account, log = self._ground.cluster, self._ground.account, self._ground.log
        arguments = ["-D", as_seen_by(account, cluster.path), *(f"--{setting}" for setting in ENFORCED)]
        while True:
            await_end_of_family(cluster.path, ends_at)
            forget_stale_pids(cluster)
            write_settings(cluster, account)
            mark = log.size_bytes()
            self._process = self._ground.spawn("postgres", arguments, cluster.path, ends_by=signal.SIGINT)
            is_up = _await_answer(self._process, cluster, self.url, ends_at)
            if self._process.poll() is None:
                if patient and not is_up:
                    raise EmbeddedPostgresFailed(f"the embedded Postgres does not answer in time; {log.tail(mark)}")
                publish(cluster)
                return
            if not members(cluster.path):  # else it was kept out by the last of its predecessor's children
                code = self._process.returncode
                raise EmbeddedPostgresFailed(f"the embedded Postgres ended with {code}; {log.tail(mark)}")

    def _end(self, timeout_s: float) -> None:
        if self._process is None:
            return
        for step, patience_s in ((signal.SIGINT, timeout_s), (signal.SIGQUIT, QUIT_S), (signal.SIGKILL, QUIT_S)):
            self._process.send_signal(step)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
                break
        await_end_of_family(self._ground.cluster.path, time.monotonic() + QUIT_S)


def _take(cluster: Cluster, lock_s: float, undo: contextlib.ExitStack) -> Ground:
    """Makes the data directory ours; what was opened is closed by `undo`."""
    cluster.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = acquire(cluster.lock, cluster.path, lock_s)
    undo.callback(os.close, held)
    log = LogFile.open(cluster.log)
    undo.callback(log.close)
    log.trim()
    account = account_for(cluster.data_dir, cluster.path)
    refuse_other_versions(cluster)
    return Ground(cluster, account, binaries_for(account, cluster.data_dir), held, log)


def _await_answer(process: subprocess.Popen[bytes], cluster: Cluster, url: str, ends_at: float) -> bool:
    """Whether `process` came to answer; False when it ended or `ends_at` passed."""
    while process.poll() is None and time.monotonic() < ends_at:
        if is_ready(cluster, process.pid) and answers(url, make_database=True):
            return True
        time.sleep(POLL_S)
    return False
