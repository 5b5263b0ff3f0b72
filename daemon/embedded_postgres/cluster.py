"""The data directory: where its parts lie, which versions are refused, and the settings of the server."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daemon.embedded_postgres.account import Account
from daemon.embedded_postgres.installation import MAJOR
from daemon.errors import EmbeddedPostgresFailed

SETTINGS: Final = """\
# Written at every start. Changes belong into ALTER SYSTEM, which wins over this file.
include 'initdb.conf'
cluster_name = 'dealix'
max_connections = 60
shared_buffers = 128MB
max_wal_size = 1GB
max_prepared_transactions = 10          # dealix.emit works inside PREPARE TRANSACTION
client_connection_check_interval = 1s   # a dead client's query ends, and with it the locks of its session
autovacuum_naptime = 5s                 # the queue's tables turn over completely every few seconds
autovacuum_vacuum_cost_limit = 1000
recovery_init_sync_method = syncfs      # one call for the whole filesystem: 0.1 s after a crash, not 0.4 to 0.8
jit = off                               # the hot statements are far too short for it
timezone = 'UTC'
# The log holds no payload: an error's DETAIL, CONTEXT and STATEMENT may quote one, so they are left out.
log_timezone = 'UTC'
log_line_prefix = '%m [%p] '
log_min_messages = warning
log_min_error_statement = panic
log_error_verbosity = terse
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
log_checkpoints = off
"""
"""fsync, synchronous_commit and full_page_writes keep their default, on: what is committed is on the disk."""

ENFORCED: Final = (
    "listen_addresses=",
    "port=5432",
    "unix_socket_directories=.",
    "unix_socket_permissions=0700",
    "log_destination=stderr",
    "logging_collector=off",
)
"""What our way to the server and to its log depends on. On the command line, where ALTER SYSTEM cannot undo it.

The socket is bound relative to the cluster, the server's working directory: no path is too long for it or closed to it.
"""


SOCKET: Final = ".s.PGSQL.5432"
SOCKET_LOCK: Final = SOCKET + ".lock"


@dataclass(frozen=True, slots=True)
class Cluster:
    """The places under one `data_dir`, which is absolute."""

    data_dir: Path

    @classmethod
    def at(cls, data_dir: Path) -> Cluster:
        """Absolute, with links followed: a short name is made from it, by whichever way one comes to the directory."""
        return cls(data_dir.expanduser().resolve())

    @property
    def path(self) -> Path:
        """The cluster itself, with the major version in its name: 0700 and the server account's own."""
        return self.data_dir / f"pg{MAJOR}"

    @property
    def staging(self) -> Path:
        """Where initdb works; what stands there is half a cluster."""
        return self.data_dir / f"pg{MAJOR}.init"

    @property
    def lock(self) -> Path:
        """Held by the supervisor and every process of its server."""
        return self.data_dir / f"pg{MAJOR}.lock"

    @property
    def guests(self) -> Path:
        """Held, shared, by every process that uses a server which it does not keep."""
        return self.data_dir / f"pg{MAJOR}.guests"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.data_dir / f"pg{MAJOR}.log"

    @property
    def address(self) -> Path:
        """A file with the directory to connect through; other processes find the server by it."""
        return self.data_dir / f"pg{MAJOR}.address"

    @property
    def initialised(self) -> bool:
        """Whether there is a cluster. initdb writes the marker, and nothing half-made ever gets the cluster's name."""
        return (self.path / "PG_VERSION").exists()


def as_seen_by(account: Account, directory: Path) -> str:
    """How a process of `account` whose working directory is `directory` names it.

    As root the directories above may be closed to the account, and to open them is not ours. The kernel's own link
    needs no walk through them, and every process that the postmaster forks inherits its working directory.
    """
    return "/proc/self/cwd" if account.switched else str(directory)


def refuse_other_versions(cluster: Cluster) -> None:
    """Raises EmbeddedPostgresFailed where there is another version's data: Postgres could not read it.

    A cluster of another major version beside ours is one too, as long as ours is not there: starting with an empty one
    would look as if all had been lost.
    """
    if cluster.initialised:
        version = (cluster.path / "PG_VERSION").read_text().strip()
        if version != str(MAJOR):
            raise EmbeddedPostgresFailed(
                f"{cluster.path} holds data of Postgres {version}, but this release brings {MAJOR}"
            )
        return
    if cluster.path.exists() and any(cluster.path.iterdir()):
        raise EmbeddedPostgresFailed(f"{cluster.path} is not empty, and no cluster either (there is no PG_VERSION)")
    others = [found.parent.name for found in sorted(cluster.data_dir.glob("pg[0-9]*[0-9]/PG_VERSION"))]
    if others:
        raise EmbeddedPostgresFailed(
            f"{cluster.data_dir} holds {', '.join(others)}, this release brings Postgres {MAJOR}: dump the data with "
            "the release that wrote it (pg_dump), move the old directory away, start this one and restore"
        )


def write_settings(cluster: Cluster, account: Account) -> None:
    """Puts SETTINGS in place, unless they are there already (so that a full disk does not keep the server down).

    By a rename inside of the opened directory: a link that the server's account planted there is never followed.
    """
    folder = os.open(cluster.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _read(folder, "postgresql.conf") == SETTINGS.encode():
            return
        fresh = "postgresql.conf.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=folder)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        with os.fdopen(descriptor, "w") as file:
            file.write(SETTINGS)
            if account.switched:
                os.fchown(file.fileno(), account.uid, account.gid)
        os.rename(fresh, "postgresql.conf", src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def forget_stale_pids(cluster: Cluster) -> None:
    """Removes the pid files that Postgres would take for a running server's, though nothing runs on the cluster now.

    Their pid may be another program's (in containers the same few pids return after a restart), or a zombie's whose
    parent never waits for it.
    """
    for name in ("postmaster.pid", SOCKET_LOCK):
        file = cluster.path / name
        try:
            pid = int(file.read_bytes().split(b"\n", 1)[0])
        except (FileNotFoundError, ValueError):
            continue
        if Path(f"/proc/{pid}").exists():
            file.unlink()


def is_ready(cluster: Cluster, pid: int) -> bool:
    """Whether the postmaster `pid` says that it takes connections: the eighth line of its pid file."""
    try:
        lines = (cluster.path / "postmaster.pid").read_bytes().split(b"\n")
    except FileNotFoundError:
        return False
    return len(lines) > 7 and lines[0] == str(pid).encode() and lines[7].strip() == b"ready"


def _read(folder: int, name: str) -> bytes:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    except OSError:  # not there, or a link
        return b""
    with os.fdopen(descriptor, "rb") as file:
        return file.read()
