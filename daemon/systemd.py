"""What systemd tells a service through its environment, and what a service tells it: sd_notify(3), sd_listen_fds(3).

Everything here is quiet outside systemd: no variable, nothing said. Variables are read from the mapping that is passed.
Children must not inherit them: pass an environment without NOTIFY_SOCKET, LISTEN_* and WATCHDOG_* to each.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FIRST_FD: Final = 3
"""Passed sockets are descriptors 3, 4, … (sd_listen_fds(3): SD_LISTEN_FDS_START)."""
_SEND_TIMEOUT_S: Final = 0.2
"""The manager queues hundreds of datagrams; where it reads none, waiting longer would only stall the daemon."""


_OURS: Final = {"NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"}


@dataclass(frozen=True)
class Notifier:
    """Messages to the service manager. `address` is a path, or `@name` for an abstract socket; None: nobody listens."""

    address: str | None

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Notifier:
        """The notifier for $NOTIFY_SOCKET; other kinds of address (vsock) count as none."""
        address = environ.get("NOTIFY_SOCKET", "")
        return cls(address if address.startswith(("/", "@")) else None)

    def ready(self, status: str) -> None:
        """The service is up; also ends a reload."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(status))

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        """The service begins to stop."""
        self._send("STOPPING=1", _status(status))

    def watchdog(self) -> None:
        """The service is alive. Due at least once per `watchdog_s`, better twice."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """The start, reload or stop under way may take `seconds` more from now: a long migration."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def _send(self, *lines: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        # A manager that is gone or full must not take the service down with it.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_SEND_TIMEOUT_S)
            _ = sock.sendto("\n".join(lines).encode(), address)


def watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Seconds of silence after which systemd kills the service; None where it does not watch this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    interval = environ.get("WATCHDOG_USEC", "")
    return int(interval) / 1_000_000 if interval.isascii() and interval.isdigit() and int(interval) > 0 else None


def passed_fds(environ: Mapping[str, str]) -> range:
    """The descriptors of sockets that systemd opened for this process (socket activation); empty without any."""
    count = environ.get("LISTEN_FDS", "")
    ours = environ.get("LISTEN_PID") == str(os.getpid())
    return range(FIRST_FD, FIRST_FD + (int(count) if ours and count.isascii() and count.isdigit() else 0))


def credentials_dir(environ: Mapping[str, str]) -> Path | None:
    """Where LoadCredential= put its files; None without credentials."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    return Path(directory) if directory else None


def without_systemd(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child: one that wrote READY=1 or took the sockets would speak for the service."""
    return {k: v for k, v in environ.items() if k not in _OURS and not k.startswith(("LISTEN_", "WATCHDOG_"))}


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())
