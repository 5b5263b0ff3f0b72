"""README.md, "Your first webhook": what it says to type, typed as it stands, ends with an event that was verified."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from api.verification import examples
from tests.e2e.figures import Tell
from tests.support.daemon_process import END_S
from tests.support.demo import Demo, demos_in
from tests.support.markdown import under


class Terminal:
    """A shell that somebody types into. Standard error is among what it prints."""

    def __init__(self, shell: subprocess.Popen[str]) -> None:
        self._shell = shell

    def type(self, code: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{code}\n")
        self._shell.stdin.flush()

    def line(self) -> str:
        assert self._shell.stdout is not None
        line = self._shell.stdout.readline()
        assert line, "the shell has ended"
        return line.rstrip("\n")

    def run(self, code: str) -> str:
        """Type it and wait for its end, a success; what it printed."""
        self.type(f'{code}\nstatus=$?; echo; echo "ended with $status"')
        lines: list[str] = []
        while not (line := self.line()).startswith("ended with "):
            lines.append(line)
        assert line == "ended with 0", lines
        return "\n".join(lines)


@contextmanager
def terminal_in(directory: Path, **environ: str) -> Generator[Terminal]:
    shell = subprocess.Popen(
        ["sh"],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "HOME": str(directory)} | environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield Terminal(shell)
    finally:
        os.killpg(shell.pid, 9)
        shell.communicate(timeout=END_S)


@pytest.mark.timeout(120)
def test_whoever_types_what_the_readme_says_sees_an_event_verified(tmp_path: Path, tell: Tell) -> None:
    began = time.monotonic()
    made, started, sent = (block.code for block in under("../README.md", "Your first webhook")[1:])
    (receiver,) = [block for block in under("receiving.md", "A first receiver") if block.fence == "python"]
    port = free_port()
    own = tmp_path / "own"
    own.mkdir()
    with demos_in(tmp_path) as demos:
        demos.append(demo := Demo(tmp_path))
        (export,) = [line for line in demo.until("Each further") if line.startswith("  export DEALIX_DATA_DIR")]
        with terminal_in(tmp_path) as second, terminal_in(own, PORT=port) as third:
            second.run(export)
            secret = json.loads(second.run(made.replace("localhost:3000", f"localhost:{port}")))["secret"]
            (own / "verify.py").write_text(examples()["Python"])
            (own / "receiver.py").write_text(receiver.code)
            third.type(started.replace("whsec_…", secret))
            assert third.line() == f"listening on http://127.0.0.1:{port}/hook"
            assert "(1 row)" in second.run(sent)
            assert third.line() == "deal.won {'deal_id': 7}"
            tell(f"from the start of the demo to a verified event: {time.monotonic() - began:.1f} s")
            assert third.line().endswith('"POST /hook HTTP/1.1" 204 -')  # which Python's server says of each request
            assert "matched 1" in second.run("dealix emit --customer acme --type deal.won --data '{\"deal_id\": 8}'")
            assert third.line() == "deal.won {'deal_id': 8}"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
