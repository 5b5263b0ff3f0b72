"""The proxy between daemon and Postgres, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from tests.support.daemon_process import spawn
from tests.support.own_server import OwnServer

PROGRAM: Final = Path(__file__).parent / "proxy_program.py"
END_S: Final = 10.0


class Proxy:
    """It forwards until told otherwise; see the program's text for the words."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.port = int(self._answer())

    def url(self, direct: str) -> str:
        """The URL of the same database by way of the proxy."""
        parts = urlsplit(direct)
        return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{self.port}")))

    def tell(self, *words: str) -> str:
        """Give a command; returns the answer, when it holds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\t".join(words).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()


@contextmanager
def open_proxy(server: OwnServer, directory: Path) -> Generator[Proxy]:
    """A proxy before `server` until the end of the block."""
    stderr = directory / "proxy.stderr"
    process = spawn(
        [sys.executable, str(PROGRAM), "127.0.0.1", str(server.port)],
        stderr=stderr,
        environ={"PATH": os.environ["PATH"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Proxy(process)
    finally:
        process.kill()
        process.communicate(timeout=END_S)
    assert stderr.read_text() == ""
