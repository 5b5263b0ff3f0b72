"""A limit on a daemon's memory: a control group's where this process may make one, else kept by the test itself."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tests.chaos.watching import rss_kb
from tests.support.daemon_process import DaemonProcess, until

CONTROL_GROUPS: Final = Path("/sys/fs/cgroup")
FILES: Final = {2: "memory.max", 1: "memory.limit_in_bytes"}
UNLIMITED: Final = {2: "max", 1: "-1"}
USAGE: Final = {2: "memory.current", 1: "memory.usage_in_bytes"}
CACHE: Final = {2: "file", 1: "cache"}
"""Of the usage what the kernel takes back before it kills."""
EVENTS: Final = {2: "memory.events", 1: "memory.oom_control"}
INTO: Final = ("sh", "-c", 'echo $$ > "$0" && exec "$@"')
"""A program that goes into the group whose list is named next, and then becomes what is named after it."""


class MemoryLimit(Protocol):
    """None until it is given."""

    @property
    def name(self) -> str:
        """What keeps it."""
        ...

    @property
    def command(self) -> Sequence[str]:
        """What daemons are to be started by."""
        ...

    def leave(self, daemon: DaemonProcess, headroom_kb: int) -> None:
        """From now on it may have so much more than now."""
        ...

    def wait_until_killed(self, daemon: DaemonProcess, *, within_s: float) -> None:
        """Wait until the daemon has been killed for its memory; then there is no limit again."""
        ...


@dataclass
class ControlGroup:
    """The kernel kills. `version` is that of the hierarchy."""

    path: Path
    version: int
    kills: int = 0

    @property
    def name(self) -> str:
        return f"control group, version {self.version}"

    @property
    def command(self) -> Sequence[str]:
        return (*INTO, str(self.path / "cgroup.procs"))

    def leave(self, daemon: DaemonProcess, headroom_kb: int) -> None:  # noqa: ARG002 - it is alone in the group
        used = int((self.path / USAGE[self.version]).read_text()) - self._counters("memory.stat")[CACHE[self.version]]
        self._write(str(used + headroom_kb * 1024))

    def wait_until_killed(self, daemon: DaemonProcess, *, within_s: float) -> None:
        until(lambda: not daemon.running(), within_s=within_s, what="it is over its limit, and killed")
        kills = self._counters(EVENTS[self.version])["oom_kill"]
        assert kills > self.kills, "it ended, and not for its memory"
        self.kills = kills
        self._write(UNLIMITED[self.version])

    def _write(self, value: str) -> None:
        (self.path / FILES[self.version]).write_text(value)

    def _counters(self, name: str) -> dict[str, int]:
        lines = [line.split() for line in (self.path / name).read_text().splitlines()]
        return {key: int(value) for key, value in lines}


@dataclass
class Watch:
    """The test looks at the resident memory, and kills as the kernel would."""

    limit_kb: int = 0

    @property
    def name(self) -> str:
        return "the test, by resident memory"

    @property
    def command(self) -> Sequence[str]:
        return ()

    def leave(self, daemon: DaemonProcess, headroom_kb: int) -> None:
        self.limit_kb = rss_kb(daemon.pid) + headroom_kb

    def wait_until_killed(self, daemon: DaemonProcess, *, within_s: float) -> None:
        until(lambda: rss_kb(daemon.pid) > self.limit_kb, within_s=within_s, what=f"it is over {self.limit_kb} kB")
        daemon.signal(signal.SIGKILL)
        until(lambda: not daemon.running(), within_s=within_s, what="it is killed")


@contextmanager
def memory_limit() -> Generator[MemoryLimit]:
    """The best that there is here. Its daemons must have ended before the block does."""
    group = _group()
    if group is None:
        yield Watch()
        return
    try:
        yield group
    finally:
        until(lambda: _removed(group.path), within_s=10, what="nobody is left in the control group")


def _group() -> ControlGroup | None:
    for version, parent in ((2, CONTROL_GROUPS), (1, CONTROL_GROUPS / "memory")):
        path = parent / f"dealix-test-{secrets.token_hex(4)}"
        with suppress(OSError):
            path.mkdir()
            if os.access(path / FILES[version], os.W_OK):
                return ControlGroup(path, version)
            path.rmdir()
    return None


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError:
        return False
    return True
