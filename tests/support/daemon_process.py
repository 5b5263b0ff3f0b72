"""The daemon as its operators run it: a process of its own that is started, told to stop, frozen and killed."""

from __future__ import annotations

import base64
import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final, TypeVar

from daemon.embedded_postgres.processes import PR_SET_PDEATHSIG, members

ROOT: Final = Path(__file__).parents[2]
COMMAND: Final = (sys.executable, "-m", "daemon", "serve")
START_S: Final = 60.0
END_S: Final = 35.0
"""The drain may take 25 s, and the last writes their own time."""
COMMAND_S: Final = 60.0
LOOK_S: Final = 0.02

T = TypeVar("T")


def until(look: Callable[[], T], *, within_s: float, what: str) -> T:
    """What `look` says as soon as that is true-ish. Fails after `within_s`. For what other processes do."""
    ends_at = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < ends_at, f"not within {within_s:g} s: {what}"
        time.sleep(LOOK_S)
    return found


def spawn(
    command: Sequence[str],
    *,
    stderr: Path,
    environ: Mapping[str, str],
    stdin: int,
    stdout: IO[bytes] | int | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """A child that is killed should this process end without ending it. To be called from the main thread."""
    prctl = ctypes.CDLL(None).prctl

    def end_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    with stderr.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=file,
            cwd=ROOT,
            env=environ,
            pass_fds=pass_fds,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, looked up before the fork
        )


class DaemonProcess:
    """One process. Its log is read from the file that it writes; times are `time.monotonic()` unless said otherwise."""

    def __init__(
        self, log_file: Path, environ: Mapping[str, str], command: Sequence[str], pass_fds: Sequence[int] = ()
    ) -> None:
        self._log_file = log_file
        self.started_at = time.monotonic()
        self._process = spawn(command, stderr=log_file, environ=environ, stdin=subprocess.DEVNULL, pass_fds=pass_fds)
        self.pid = self._process.pid
        self.ready_after_s = float("inf")

    # -- what it says -----------------------------------------------------------------------------------------------

    def text(self) -> str:
        """All that it wrote to standard error."""
        return self._log_file.read_text()

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """Its log lines so far (those of one event); a line that a kill cut short is left out."""
        whole = [json.loads(line) for line in self.text().split("\n")[:-1] if line.startswith("{")]
        return [line for line in whole if event is None or line["event"] == event]

    def stray_lines(self) -> list[str]:
        """What it wrote that is no log line: warnings of the interpreter, tracebacks."""
        return [line for line in self.text().split("\n")[:-1] if not line.startswith("{")]

    def wait_for(self, event: str, count: int = 1, *, within_s: float = START_S) -> dict[str, Any]:
        """The `count`th log line of `event`, as soon as it is there."""

        def look() -> list[dict[str, Any]]:
            assert self.running() or len(self.lines(event)) >= count, f"it ended with {self.exit_code}: {self.text()}"
            return self.lines(event)[count - 1 : count]

        return until(look, within_s=within_s, what=f"{event} in {self.text()}")[0]

    @property
    def api(self) -> str:
        """The base URL of its API, from the line that says that it is ready."""
        return str(self.wait_for("daemon.ready")["api"])

    # -- what is done to it -----------------------------------------------------------------------------------------

    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, within_s: float = END_S) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(within_s)

    def stop(self, within_s: float = END_S) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(within_s)

    def kill(self) -> float:
        """SIGKILL; returns when it was sent."""
        at = time.monotonic()
        self._process.kill()
        self._process.wait(END_S)
        return at


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


@dataclass
class Installation:
    """Daemons with one data directory and one sealing key, None for the one that the first start makes there.

    They are started by `command`, which inherits the descriptors `pass_fds`. `end` ends what still runs of what was
    started here.
    """

    directory: Path
    command: Sequence[str] = COMMAND
    sealing_key: str | None = field(default_factory=lambda: base64.b64encode(secrets.token_bytes(32)).decode())
    processes: list[DaemonProcess] = field(default_factory=list[DaemonProcess])
    pass_fds: Sequence[int] = ()

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    def start(
        self,
        database_url: str | None = None,
        *,
        config: Path | None = None,
        environ: Mapping[str, str | int] = MappingProxyType({}),
        ready: bool = True,
    ) -> DaemonProcess:
        """Start a daemon, on its embedded Postgres unless told, and wait until it is `ready`.

        Of this process' own environment it gets the PATH alone.
        """
        given = self._environ(database_url) | {name: str(value) for name, value in environ.items()}
        log_file = self.directory / f"daemon-{len(self.processes) + 1}.log"
        command = [*self.command, *([] if config is None else ["--config", str(config)])]
        daemon = DaemonProcess(log_file, given, command, self.pass_fds)
        self.processes.append(daemon)
        if ready:
            daemon.wait_for("daemon.ready")
            daemon.ready_after_s = time.monotonic() - daemon.started_at
        return daemon

    def run(
        self,
        *words: str,
        database_url: str | None = None,
        stdin: str = "",
        environ: Mapping[str, str | int] = MappingProxyType({}),
    ) -> Ended:
        """Run a command to its end, with the settings that the daemons have."""
        given = self._environ(database_url) | {name: str(value) for name, value in environ.items()}
        ended = subprocess.run(
            [sys.executable, "-m", "daemon", *words],
            env=given,
            cwd=ROOT,
            input=stdin.encode(),
            capture_output=True,
            timeout=COMMAND_S,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())

    def _environ(self, database_url: str | None) -> dict[str, str]:
        given = {
            "PATH": os.environ["PATH"],
            "DEALIX_DATA_DIR": str(self.data_dir),
            "DEALIX_API__BIND": "127.0.0.1:0",
            "DEALIX_EGRESS__ALLOW_LOCALHOST": "true",
        }
        if self.sealing_key is not None:
            given["DEALIX_SEALING_KEY"] = self.sealing_key
        if database_url is not None:
            given["DEALIX_DATABASE__URL"] = database_url
        return given

    def end(self) -> None:
        """Kill what still runs, and wait for the end of the Postgres that it had."""
        for daemon in self.processes:
            if daemon.running():
                daemon.kill()
        for cluster in self.data_dir.glob("pg*"):
            until(lambda c=cluster: not members(c), within_s=END_S, what=f"no Postgres is left in {cluster}")

    def complaints(self) -> list[str]:
        """Signs of bugs in what those that came up logged: crashed roles, errors, anything that is no log line."""
        found: list[str] = []
        for daemon in self.processes:
            if daemon.lines("daemon.ready"):
                faults = [line for line in daemon.lines() if line["level"] == "error"]
                found += [json.dumps(line) for line in faults if line["event"] != "config.refused"]
                found += daemon.stray_lines()
        return found
