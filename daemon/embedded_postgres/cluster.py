"""The data directory: made whole or not at all, never of another version, with its settings and its address."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from daemon.embedded_postgres import processes
from daemon.embedded_postgres.account import Account
from daemon.embedded_postgres.installation import MAJOR
from daemon.embedded_postgres.log_file import LogFile
from daemon.errors import EmbeddedPostgresFailed

NAME: Final = "dealix"
"""The superuser and the database."""

SOCKET: Final = ".s.PGSQL.5432"
SUN_PATH_BYTES: Final = 107
"""unix(7): sun_path is 108 bytes with its closing NUL."""

SETTINGS: Final = """\
# Written at every start: changes belong into ALTER SYSTEM, which wins over this file.
include 'initdb.conf'
max_connections = 60
shared_buffers = 128MB
max_wal_size = 1GB
max_prepared_transactions = 10          # dealix.emit works inside PREPARE TRANSACTION
client_connection_check_interval = 1s   # a dead client's query ends, and with it the locks of its session
autovacuum_naptime = 5s                 # the queue's tables turn over completely every few seconds
autovacuum_vacuum_cost_limit = 1000
jit = off                               # every hot statement is far too short for it
timezone = 'UTC'
# The log holds no payload: an ERROR's DETAIL, CONTEXT and STATEMENT may quote the data, so they are left out.
log_timezone = 'UTC'
log_line_prefix = '%m [%p] '
log_min_messages = warning
log_min_error_statement = panic
log_error_verbosity = terse
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
log_checkpoints = off
"""
"""fsync, synchronous_commit and full_page_writes stay as they are by default: on. What commits is on disk."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The places under one `data_dir`, which is absolute."""

    data_dir: Path

    @property
    def path(self) -> Path:
        """The cluster itself, with the major version in its name: 0700 and the server account's own."""
        return self.data_dir / f"pg{MAJOR}"

    @property
    def lock(self) -> Path:
        """Held by the supervisor and every process of its server."""
        return self.data_dir / f"pg{MAJOR}.lock"

    @property
    def log(self) -> Path:
        """The server's log; its predecessor has `.1` behind it."""
        return self.data_dir / f"pg{MAJOR}.log"

    @property
    def address(self) -> Path:
        """A file with the directory to connect to; another process finds the server by it."""
        return self.data_dir / f"pg{MAJOR}.address"


def refuse_other_versions(cluster: Cluster) -> None:
    """Raises EmbeddedPostgresFailed where the data is another version's: Postgres would not read it, or start empty."""
    marker = cluster.path / "PG_VERSION"
    if marker.exists():
        version = marker.read_text().strip()
        if version != str(MAJOR):
            raise EmbeddedPostgresFailed(
                f"{cluster.path} is Postgres {version}'s, this program brings Postgres {MAJOR}"
            )
        return
    if cluster.path.exists() and any(cluster.path.iterdir()):
        raise EmbeddedPostgresFailed(f"{cluster.path} is not empty and no Postgres cluster (it has no PG_VERSION)")
    others = [p.parent.name for p in sorted(cluster.data_dir.glob("pg*/PG_VERSION")) if p.parent.name[2:].isdigit()]
    if others:
        raise EmbeddedPostgresFailed(
            f"{cluster.data_dir} holds {', '.join(others)}, and this program brings Postgres {MAJOR}: dump the data with the "
            f"release that wrote it (pg_dump), restore it here, then move the old directory away"
        )


def initialise(
    cluster: Cluster, account: Account, binaries: Path, log: LogFile, *, lock: int, timeout_s: float
) -> None:
    """Makes the cluster if it is not there: in a directory beside it, synced, then renamed.

    The builtin C.UTF-8 collation sorts by code point as fast as C, knows the letters of all languages, and does not
    change with the machine's libc: no index is ever broken by an upgrade of the system.
    """
    if (cluster.path / "PG_VERSION").exists():
        return
    staging = cluster.data_dir / f"pg{MAJOR}.init"
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(mode=0o700)
    if account.switched:
        os.chown(staging, account.uid, account.gid)
    mark = log.size()
    child = processes.spawn(
        [
            binaries / "initdb", "--pgdata", as_seen_by(account, staging), "--username", NAME,
            "--auth-local=trust", "--auth-host=reject", "--encoding=UTF8",
            "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
            "--sync-method=syncfs", "--no-instructions",
        ],
        account, cwd=staging, output=log.descriptor, keep=[lock], ends_by=signal.SIGKILL,
    )  # fmt: skip
    try:
        code = child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        raise EmbeddedPostgresFailed(f"initdb did not end within {timeout_s:.0f} s; {log.tail(mark)}") from None
    if code != 0:
        shutil.rmtree(staging)
        raise EmbeddedPostgresFailed(f"initdb ended with {code}; {log.tail(mark)}")
    (staging / "postgresql.conf").rename(staging / "initdb.conf")
    staging.rename(cluster.path)
    _sync(cluster.path)
    _sync(cluster.data_dir)


def as_seen_by(account: Account, directory: Path) -> str:
    """How a process of `account` whose working directory is `directory` names it.

    As root the parents may be closed to the account. The kernel's own link needs no walk through them, and every
    process that the postmaster forks inherits its working directory.
    """
    return "/proc/self/cwd" if account.switched else str(directory)


def write_settings(cluster: Cluster, account: Account) -> None:
    """Puts SETTINGS in place, by a rename: a link that the server's account may have planted there is never followed."""
    folder = os.open(cluster.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fresh = f".postgresql.conf.{os.getpid()}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        with open(descriptor, "w") as file:
            file.write(SETTINGS)
            if account.switched:
                os.fchown(file.fileno(), account.uid, account.gid)
        os.rename(fresh, "postgresql.conf", src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def forget_stale_pid(cluster: Cluster) -> None:
    """Removes a postmaster.pid that Postgres would take for a running server's, though its pid is another program's now.

    Usual in containers, where the same few pids return after a restart. Under the lock no server of ours can be alive;
    one that somebody started by hand works in this directory, and that is an error.
    """
    file = cluster.path / "postmaster.pid"
    try:
        pid = int(file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return
    if any(member.pid == pid for member in processes.members(cluster.path)):
        raise EmbeddedPostgresFailed(
            f"another Postgres, pid {pid}, works in {cluster.path}: it was not started by this program"
        )
    if Path(f"/proc/{pid}").exists():
        file.unlink()


def url_through(directory: Path) -> str:
    """The libpq URL of the server whose socket is reached through `directory`."""
    return f"postgresql://{NAME}@/{NAME}?host={quote(os.fsencode(directory), safe='/')}&port=5432"


def socket_directory(cluster: Cluster) -> Path:
    """A name for the cluster's directory that fits into a socket address: its own, or a link in a short private one.

    The server binds relative to its working directory and never meets the limit; only clients do. (A comma would make
    libpq read two hosts.) Made again where a cleaner of temporary files removed it.
    Raises EmbeddedPostgresFailed where every place for the short directory is somebody else's.
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
    raise EmbeddedPostgresFailed(
        f"{plain} is too long for a socket's address, and no short name can be made: {'; '.join(faults)}"
    )


def _short_homes() -> list[Path]:
    if os.geteuid() == 0:
        return [Path("/run"), Path("/tmp")]
    told = os.environ.get("XDG_RUNTIME_DIR", "")
    return ([Path(told)] if told and len(os.fsencode(told)) < 60 else []) + [Path("/tmp")]


def _link(link: Path, target: Path) -> None:
    home = link.parent
    try:
        home.mkdir(mode=0o700)
    except FileExistsError:
        found = home.lstat()
        if not home.is_dir() or home.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(0, "it exists and is not this account's alone") from None
    if not link.is_symlink() or link.readlink() != target:
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
