"""What a daemon holds: descriptors, Trio tasks, memory."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.daemon_process import DaemonProcess, Installation


@dataclass(frozen=True, slots=True)
class Holding:
    """At one moment."""

    descriptors: int
    tasks: int
    rss_kb: int


def watched(directory: Path) -> Installation:
    """Daemons of which `holding` can tell the tasks."""
    return Installation(directory, [sys.executable, "-m", "tests.chaos.watched_daemon", "serve"])


def holding(daemon: DaemonProcess) -> Holding:
    """What a `watched` daemon holds now."""
    before = len(daemon.lines("tasks.counted"))
    daemon.signal(signal.SIGUSR1)
    told = daemon.wait_for("tasks.counted", before + 1, within_s=5)
    return Holding(len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())), told["tasks"], rss_kb(daemon.pid))


def rss_kb(pid: int) -> int:
    """The process' resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
