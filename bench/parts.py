"""The processes of a benchmark: a durable Postgres, a receiver, daemons."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

from bench import receiver as receivers
from daemon.embedded_postgres import EmbeddedPostgres

ARRIVALS: Final = "arrivals.log"
PYTHON: Final = os.environ.get("BENCH_PYTHON", sys.executable)
"""What runs the daemons. Where tools for development are installed, libraries load them: see docs/bench.md."""
START_S: Final = 30.0
POLL_US: Final = 200
"""Where throughput is measured: see `stage`."""


@dataclass
class Stage:
    """What a benchmark has at hand: a durable Postgres, a receiver, and where daemons find the key.

    `authority` is the file of the authority that signed the receiver's certificate, where it speaks TLS.
    """

    home: Path
    postgres: EmbeddedPostgres
    receiver: subprocess.Popen[bytes]
    port: int
    sealing_key: str
    authority: Path | None = None

    @property
    def scheme(self) -> str:
        """Of every endpoint here."""
        return "http" if self.authority is None else "https"

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which a process trusts the receiver."""
        return os.environ | ({} if self.authority is None else {"SSL_CERT_FILE": str(self.authority)})

    @property
    def url(self) -> str:
        """The database."""
        return self.postgres.url

    @property
    def arrivals_log(self) -> Path:
        """What the receiver writes: see receiver.c and bench/arrivals.py."""
        return self.home / ARRIVALS

    @contextmanager
    def sql(self) -> Generator[psycopg.Connection]:
        """A plain connection in autocommit."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            yield connection

    @contextmanager
    def daemon(self, **settings: str) -> Generator[subprocess.Popen[bytes]]:
        """A `dealix serve` of its own; `settings` are environment variables beyond the usual ones."""
        environ = self.environ | {
            "DEALIX_DATABASE__URL": self.url,
            "DEALIX_DATA_DIR": str(self.home),
            "DEALIX_SEALING_KEY": self.sealing_key,
            "DEALIX_EGRESS__ALLOW_NETWORKS": "127.0.0.0/8",
            "DEALIX_API__BIND": "127.0.0.1:0",
            "DEALIX_LOG__LEVEL": "warning",
        }
        with (self.home / "daemon.log").open("ab") as log:
            process = subprocess.Popen([PYTHON, "-m", "daemon", "serve"], env=environ | settings, stderr=log)
        try:
            yield process
        except TimeoutError:
            print((self.home / "daemon.log").read_text(encoding="utf-8")[-4000:], file=sys.stderr)
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_S)


@contextmanager
def stage(hosts: int, *, tls: bool = False, poll_us: int = 0) -> Generator[Stage]:
    """Set up on a temporary directory; `hosts` is how many addresses 127.0.0.1, 127.0.0.2, … the receiver has.

    `poll_us`: the receiver looks so often rather than be woken by each request (see receiver.c): for rows that are
    about throughput and CPU, not latency.
    """
    with ExitStack() as ends:
        home = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="dealix-bench-")))
        postgres = EmbeddedPostgres.start(home)
        ends.callback(postgres.stop)
        authority, certificate = receivers.certify(home, hosts) if tls else (None, None)
        words = [str(hosts), "0", home / ARRIVALS, *([certificate] if certificate else [])]
        environ = os.environ | {"RECEIVER_POLL_US": str(poll_us)}
        command = [receivers.built(tls=tls), *words]
        receiver = ends.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, env=environ))
        ends.callback(receiver.terminate)
        assert receiver.stdout is not None
        port = json.loads(receiver.stdout.readline())["port"]
        yield Stage(home, postgres, receiver, port, base64.b64encode(os.urandom(32)).decode(), authority)


def wait_until(condition: Callable[[], bool], within_s: float, *, every_s: float = 0.02) -> None:
    """Poll until it holds. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not reached within {within_s:g} s")
        time.sleep(every_s)
