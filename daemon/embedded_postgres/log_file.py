"""The server's log: written by Postgres through an inherited descriptor, kept small and quoted in errors by us."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daemon.embedded_postgres.lock import open_owned

LIMIT_BYTES: Final = 8 * 1024 * 1024
"""Twice that is the most that log and predecessor take, as long as somebody calls `trim`."""

TAIL_LINES: Final = 8


@dataclass(frozen=True, slots=True)
class LogFile:
    """An open log. The server's account needs no right to it: it inherits the descriptor, in append mode."""

    path: Path
    descriptor: int

    @classmethod
    def open(cls, path: Path) -> LogFile:
        """Opens or makes the file, for our own account alone."""
        return cls(path, open_owned(path, os.O_RDWR | os.O_APPEND))

    def close(self) -> None:
        """Gives our descriptor up; a server that is still there goes on writing."""
        os.close(self.descriptor)

    def size(self) -> int:
        """Bytes written up to now: what `tail` begins behind."""
        return os.fstat(self.descriptor).st_size

    def trim(self) -> None:
        """Above LIMIT_BYTES moves the content to `.1`. Truncating in place suits writers in append mode; what they
        write between copy and cut is lost."""
        if self.size() <= LIMIT_BYTES:
            return
        with os.fdopen(os.dup(self.descriptor), "rb") as source:
            source.seek(0)
            former = self.path.with_name(self.path.name + ".1")
            former.unlink(missing_ok=True)
            with os.fdopen(open_owned(former, os.O_WRONLY), "wb") as target:
                shutil.copyfileobj(source, target)
        os.ftruncate(self.descriptor, 0)

    def tail(self, since: int) -> str:
        """The last lines written after `since` (bytes), fit to end an error's text."""
        size = self.size()
        start = max(since if since <= size else 0, size - 8192)
        lines = os.pread(self.descriptor, size - start, start).decode(errors="replace").splitlines()[-TAIL_LINES:]
        return f"{self.path} says:\n" + "\n".join(lines) if lines else f"{self.path} says nothing"
