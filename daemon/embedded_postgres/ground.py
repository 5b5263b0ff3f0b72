"""What a server stands on once its data directory is ours: the open lock and log, the account, the binaries."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.embedded_postgres.account import Account
from daemon.embedded_postgres.cluster import Cluster
from daemon.embedded_postgres.log_file import LogFile
from daemon.embedded_postgres.processes import Surroundings, spawn


@dataclass(frozen=True, slots=True)
class Ground:
    """The descriptors `lock` and `log.descriptor` belong to whoever made this, who closes them."""

    cluster: Cluster
    account: Account
    binaries: Path
    lock: int
    log: LogFile

    def spawn(
        self, program: str, arguments: Sequence[str], directory: Path, *, ends_by: signal.Signals
    ) -> subprocess.Popen[bytes]:
        """Runs one of the binaries in `directory`, writing to the log and holding the lock. Raises OSError."""
        surroundings = Surroundings(self.account, directory, self.log.descriptor, inherited=(self.lock,))
        return spawn([self.binaries / program, *arguments], surroundings, ends_by=ends_by)
