"""The server's log: written by Postgres through an inherited descriptor, kept small and quoted in errors by us."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daemon.embedded_postgres.lock import open_owned

LIMIT_BYTES: Final = 8 * 1024 * 1024
"""Log and predecessor together take twice that at most, as long as somebody calls `trim`."""

TAIL_LINES: Final = 8
TAIL_BYTES: Final = 8192


@dataclass(frozen=True, slots=True)
class LogFile:
    """An open log. The server's account needs no right to it: it inherits the descriptor, in append mode."""

    path: Path
    descriptor: int

    @classmethod
    def open(cls, path: Path) -> LogFile:
        """Opens or makes the file, readable for its owner alone."""
        return cls(path, open_owned(path, os.O_RDWR | os.O_APPEND))

    def close(self) -> None:
        """Gives our descriptor up; a server that is still there goes on writing."""
        os.close(self.descriptor)

    def size_bytes(self) -> int:
        """What it holds now; `tail` takes it as the mark to begin at."""
        return os.fstat(self.descriptor).st_size

    def trim(self) -> None:
        """Above LIMIT_BYTES moves the content to `.1`.

        The file is cut in place, which suits writers in append mode; what they write between copy and cut is lost.
        """
        if self.size_bytes() <= LIMIT_BYTES:
            return
        former = self.path.with_name(self.path.name + ".1")
        former.unlink(missing_ok=True)
        with self.path.open("rb") as source, os.fdopen(open_owned(former, os.O_WRONLY), "wb") as target:
            shutil.copyfileobj(source, target)
        os.ftruncate(self.descriptor, 0)

    def tail(self, since_bytes: int) -> str:
        """The last lines that were written after the mark, as the end of an error's text."""
        size = self.size_bytes()
        begin = max(since_bytes if since_bytes <= size else 0, size - TAIL_BYTES)
        lines = os.pread(self.descriptor, size - begin, begin).decode(errors="replace").splitlines()[-TAIL_LINES:]
        return f"{self.path} says:\n" + "\n".join(lines) if lines else f"{self.path} says nothing"
