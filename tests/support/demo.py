"""A running `dealix demo`, as its user has it in a terminal."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from daemon.embedded_postgres.processes import members
from tests.support.daemon_process import ROOT, until
from tests.support.own_server import free_port

LINE_S: Final = 60.0


class Demo:
    """A running demo and the lines that it has printed. On a port of its own, since tests beside it have demos too."""

    def __init__(self, directory: Path, *, usual_port: bool = False) -> None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("DEALIX_")}
        if not usual_port:
            environ["DEALIX_API__BIND"] = f"127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "demo"],
            cwd=directory,
            env=environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def close(self) -> None:
        self.process.wait(LINE_S)
        self._reader.join(LINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def line(self) -> str | None:
        """The next line, None at the end."""
        return self._lines.get(timeout=LINE_S)

    def until(self, beginning: str) -> list[str]:
        """The lines up to the first that begins like this."""
        lines: list[str] = []
        while (line := self.line()) is not None:
            lines.append(line)
            if line.startswith(beginning):
                return lines
        raise AssertionError("\n".join(lines))

    def end(self, number: signal.Signals) -> list[str]:
        """Send the signal; the rest of its lines. It ends with 0."""
        self.process.send_signal(number)
        rest: list[str] = []
        while (line := self.line()) is not None:
            rest.append(line)
        assert self.process.wait(LINE_S) == 0
        return rest


@contextmanager
def demos_in(directory: Path) -> Generator[list[Demo]]:
    """Those that are put into the list are ended with the block, and the Postgres that they had with them."""
    demos: list[Demo] = []
    try:
        yield demos
    finally:
        for demo in demos:
            if demo.process.poll() is None:
                demo.process.kill()
            demo.close()
        until(lambda: not members(directory / ".dealix" / "pg18"), within_s=LINE_S, what="no Postgres is left")
