"""Making the data directory: whole or not at all."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final

from daemon.embedded_postgres.account import Account
from daemon.embedded_postgres.address import NAME
from daemon.embedded_postgres.cluster import as_seen_by
from daemon.embedded_postgres.ground import Ground
from daemon.errors import EmbeddedPostgresFailed

OPTIONS: Final = (
    f"--username={NAME}",
    "--auth-local=trust",
    "--auth-host=reject",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--sync-method=syncfs",
    "--no-instructions",
)
"""The builtin C.UTF-8 collation sorts by code point, as fast as C, yet knows the letters of all languages; and it never
changes with the machine's libc, so no upgrade of the system breaks an index. syncfs: 0.2 s where a thousand fsyncs take
longer. Page checksums are on by default."""


def initialise(ground: Ground, timeout_s: float) -> None:
    """Runs initdb in a directory beside the cluster's, then renames that. Raises EmbeddedPostgresFailed and OSError."""
    cluster, account, staging = ground.cluster, ground.account, ground.cluster.staging
    _demand_entry(account)
    if staging.exists():  # a former start was interrupted
        shutil.rmtree(staging)
    staging.mkdir(mode=0o700)
    if account.switched:
        os.chown(staging, account.uid, account.gid)
    mark = ground.log.size_bytes()
    arguments = [f"--pgdata={as_seen_by(account, staging)}", *OPTIONS]
    child = ground.spawn("initdb", arguments, staging, ends_by=signal.SIGKILL)
    try:
        child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise EmbeddedPostgresFailed(f"initdb took over {timeout_s:.0f} s; {ground.log.tail(mark)}") from None
    finally:
        child.kill()
        child.wait()
    if child.returncode != 0:
        raise EmbeddedPostgresFailed(f"initdb ended with {child.returncode}; {ground.log.tail(mark)}")
    (staging / "postgresql.conf").rename(staging / "initdb.conf")  # ours includes it
    _sync(staging)
    staging.rename(cluster.path)
    _sync(cluster.data_dir)


def _demand_entry(account: Account) -> None:
    """As initdb does, with a better reason; usual in containers that run under a made-up uid."""
    try:
        pwd.getpwuid(account.uid)
    except KeyError:
        raise EmbeddedPostgresFailed(f"uid {account.uid} has no passwd entry, which initdb cannot do without") from None


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
