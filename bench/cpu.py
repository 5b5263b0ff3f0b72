"""What each process cost, and how busy the machine was otherwise, by the operating system's own accounting."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS: Final = os.sysconf("SC_CLK_TCK")
"""The unit of /proc: 10 ms as a rule, so a measurement should last seconds."""


def cpu_s(pid: int) -> float:
    """User and system time of a process, its children alive and its children that ended, in seconds."""
    total = _ticks(pid, ended=True)
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        total += _ticks(int(child), ended=False)
    return total / TICKS


@dataclass(frozen=True)
class Costs:
    """Seconds that passed, CPU seconds by name, and the machine's shares, 0–1: busy, and taken by nobody named."""

    wall_s: float
    cpu_s: dict[str, float]
    busy: float
    others: float


class Meter:
    """Reads now, and again when asked. The processes go by name: `Meter(daemon=7, postgres=8)`."""

    def __init__(self, **pids: int) -> None:
        self._pids = pids
        self._before = self._read()

    def costs(self) -> Costs:
        """Since it was made. The calling process counts as named, and so do its children that ended meanwhile."""
        wall_s, busy_s, own_s, *each_s = (
            after - before for before, after in zip(self._before, self._read(), strict=True)
        )
        others_s = max(busy_s - own_s - sum(each_s), 0.0)
        all_s = wall_s * (os.cpu_count() or 1)
        return Costs(wall_s, dict(zip(self._pids, each_s, strict=True)), busy_s / all_s, others_s / all_s)

    def _read(self) -> list[float]:
        own = os.times()
        return [
            time.monotonic(),
            _busy_s(),
            own.user + own.system + own.children_user + own.children_system,
            *(cpu_s(pid) for pid in self._pids.values()),
        ]


def _busy_s() -> float:
    """Of all CPUs together: everything but idle and waiting for a disk."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / TICKS


def _ticks(pid: int, *, ended: bool) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):  # gone before the look, or during it
        return 0
    return sum(map(int, fields[11:15] if ended else fields[11:13]))
