"""A command that goes on, as a process: its lines are read as they come."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio


class Command:
    """A command that runs; its lines as they come, standard error among them."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._more = trio.Event()

    async def read(self) -> None:
        assert self.process.stdout is not None
        rest = ""
        async for data in self.process.stdout:
            *lines, rest = (rest + data.decode()).split("\n")
            self.lines += lines
            self._more.set()

    async def line(self, pattern: str) -> re.Match[str]:
        """The first line that the pattern finds, waited for."""
        while True:
            if found := next(filter(None, (re.search(pattern, line) for line in self.lines)), None):
                return found
            self._more = trio.Event()
            await self._more.wait()


@asynccontextmanager
async def running(*words: str, **environ: str) -> AsyncGenerator[Command]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("DEALIX_")} | environ
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "daemon", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
    )
    command = Command(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(command.read)
            yield command
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
