"""Starting Postgres processes that end with us, and ending those that lost their postmaster."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daemon.embedded_postgres.account import Account
from daemon.errors import EmbeddedPostgresFailed

PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal that a process gets when the thread that forked it ends. Linux only; execve keeps it."""

ORPHAN_GRACE_S: Final = 0.3
"""How long processes that lost their postmaster may take to leave by themselves; idle ones need a few milliseconds."""

POLL_S: Final = 0.01

ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
"""All that a Postgres process is told: PG* variables would change it, and our own environment may hold secrets."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a child starts with: its account, working directory, the descriptor for both outputs, others to inherit.

    The directory is entered before the account changes, so it may lie where that account cannot go.
    """

    account: Account
    directory: Path
    output: int
    inherited: tuple[int, ...] = ()


def spawn(
    command: Sequence[str | Path], surroundings: Surroundings, *, ends_by: signal.Signals
) -> subprocess.Popen[bytes]:
    """Starts a child in a session of its own (Ctrl-C is for us alone) that gets `ends_by` when we end.

    Raises OSError where it cannot be run, and RuntimeError outside of the main thread: PDEATHSIG follows the forking
    thread, and a worker thread's end would stop the server.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("Postgres processes are started from the main thread")
    account = surroundings.account
    return subprocess.Popen(  # noqa: S603 — a fixed program with arguments of our own
        [os.fspath(word) for word in command],
        cwd=surroundings.directory,
        stdin=subprocess.DEVNULL,
        stdout=surroundings.output,
        stderr=surroundings.output,
        env=ENVIRONMENT,
        pass_fds=surroundings.inherited,
        start_new_session=True,
        umask=0o077,
        user=account.uid if account.switched else None,
        group=account.gid if account.switched else None,
        extra_groups=[] if account.switched else None,
        preexec_fn=_end_with_parent(ends_by),  # noqa: PLW1509 — two system calls, nothing that a thread could have locked
    )


def _end_with_parent(ends_by: signal.Signals) -> Callable[[], None]:
    """What the child does between fork and exec, once it has its final uid: changing the uid clears PDEATHSIG."""
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: the child does as little as it can
    parent = os.getpid()

    def in_child() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a starter like nohup leaves it ignored, and exec keeps that
        if prctl(PR_SET_PDEATHSIG, int(ends_by), 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)  # the parent ended between fork and prctl: no signal would ever come

    return in_child


@dataclass(frozen=True, slots=True)
class Member:
    """A `postgres` whose working directory is the cluster: the postmaster, and every process it forked."""

    pid: int
    parent: int
    title: str

    @property
    def is_child(self) -> bool:
        """Whether the postmaster forked it: only its children call themselves `postgres: …`."""
        return self.title.startswith("postgres: ")


def members(cluster: Path) -> list[Member]:
    """The cluster's processes as far as /proc shows them to us: all of them, for their own account and for root."""
    try:
        home = cluster.stat()
    except FileNotFoundError:
        return []
    return [found for pid in _pids() if (found := _member(pid, home)) is not None]


def kill_orphans(cluster: Path) -> None:
    """SIGKILLs the cluster's processes whose postmaster is gone.

    Idle ones leave by themselves in milliseconds, but a busy query would go on for minutes and keep the next server
    out. The shared memory they work on is lost already, so there is nothing left that a gentler end would save. A
    postmaster that is just starting is never meant.
    """
    family = members(cluster)
    pids = {member.pid for member in family}
    for member in family:
        if member.is_child and member.parent not in pids:
            _kill(member, cluster)


def await_end_of_family(cluster: Path, ends_at: float) -> None:
    """Returns when no process of the cluster is left; orphans that linger are killed. To be called under the lock.

    Raises EmbeddedPostgresFailed at `ends_at` (monotonic), or soon where a postmaster is among them: the lock was free,
    so it is none of ours, but somebody's who started it by hand.
    """
    grace_ends_at = time.monotonic() + ORPHAN_GRACE_S
    while family := members(cluster):
        now = time.monotonic()
        left = ", ".join(f"pid {member.pid} ({member.title})" for member in family)
        if now > grace_ends_at:
            if not all(member.is_child for member in family):
                raise EmbeddedPostgresFailed(f"{cluster} is in use by a Postgres of somebody else's: {left}")
            kill_orphans(cluster)
        if now > ends_at:
            raise EmbeddedPostgresFailed(f"processes of a former server are still in {cluster}: {left}")
        time.sleep(POLL_S)


def holders(path: Path) -> str:
    """Who has `path` open, as far as /proc shows it to us: `pid 123 (dealix)`. Children of such are left out."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return "nobody"
    pids = {pid for pid in _pids() if _has_open(pid, wanted)}
    heads = [f"pid {pid} ({_text(pid, 'comm').strip()})" for pid in sorted(pids) if _parent(pid) not in pids]
    return ", ".join(heads) or "a process that is hidden from this account"


def _kill(member: Member, cluster: Path) -> None:
    with contextlib.suppress(OSError):  # it has left by itself
        handle = os.pidfd_open(member.pid)  # from here on the number cannot come to mean another process
        try:
            if _member(member.pid, cluster.stat()) == member:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _member(pid: int, home: os.stat_result) -> Member | None:
    try:
        at = Path(f"/proc/{pid}/cwd").stat()
    except OSError:  # gone, a kernel thread, or somebody else's
        return None
    if (at.st_dev, at.st_ino) != (home.st_dev, home.st_ino) or _text(pid, "comm").strip() != "postgres":
        return None  # an operator's shell may stand there too
    return Member(pid, _parent(pid), _text(pid, "cmdline").replace("\0", " ").strip())


def _parent(pid: int) -> int:
    """The parent's pid, 0 where the process has gone."""
    behind_name = _text(pid, "stat").rpartition(")")[2].split()  # state, parent, …
    return int(behind_name[1]) if len(behind_name) > 1 else 0


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found = entry.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False


def _text(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
