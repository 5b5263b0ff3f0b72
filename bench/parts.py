"""The processes of a benchmark, and what each of them cost by the operating system's own accounting."""

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
import trio

from daemon.embedded_postgres import EmbeddedPostgres
from daemon.ids import CustomerId
from daemon.sealing import KeyRing
from daemon.store import migrate, partitions, subscriptions
from daemon.store.connection import connect

RECEIVER: Final = Path(__file__).with_name("receiver")
ARRIVALS: Final = "arrivals.log"
TICKS: Final = os.sysconf("SC_CLK_TCK")
START_S: Final = 30.0


def cpu_s(pid: int) -> float:
    """User and system time of a process, its children alive and its children that ended, in seconds."""
    total = _ticks(pid, ended=True)
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        total += _ticks(int(child), ended=False)
    return total / TICKS


def _ticks(pid: int, *, ended: bool) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return 0
    return sum(map(int, fields[11:15] if ended else fields[11:13]))


@dataclass
class Stage:
    """What a benchmark has at hand: a migrated durable Postgres, a receiver, and where daemons find the key."""

    home: Path
    postgres: EmbeddedPostgres
    receiver: subprocess.Popen[bytes]
    port: int
    sealing_key: str

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
        environ = os.environ | {
            "DEALIX_DATABASE__URL": self.url,
            "DEALIX_DATA_DIR": str(self.home),
            "DEALIX_SEALING_KEY": self.sealing_key,
            "DEALIX_EGRESS__ALLOW_NETWORKS": "127.0.0.0/8",
            "DEALIX_API__BIND": "127.0.0.1:0",
            "DEALIX_LOG__LEVEL": "warning",
        }
        with (self.home / "daemon.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", "daemon", "serve"], env=environ | settings, stderr=log)
        try:
            yield process
        except TimeoutError:
            print((self.home / "daemon.log").read_text(encoding="utf-8")[-4000:], file=sys.stderr)
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_S)


@contextmanager
def stage(hosts: int) -> Generator[Stage]:
    """Set up on a temporary directory; `hosts` is how many addresses 127.0.0.1, 127.0.0.2, … the receiver has."""
    with ExitStack() as ends:
        home = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="dealix-bench-")))
        postgres = EmbeddedPostgres.start(home)
        ends.callback(postgres.stop)
        receiver = subprocess.Popen([RECEIVER, str(hosts), "0", home / ARRIVALS], stdout=subprocess.PIPE)
        ends.callback(receiver.wait)
        ends.callback(receiver.terminate)
        assert receiver.stdout is not None
        port = json.loads(receiver.stdout.readline())["port"]
        yield Stage(home, postgres, receiver, port, base64.b64encode(os.urandom(32)).decode())


def subscribe(stage_: Stage, hosts: int, per_customer: int) -> None:
    """`hosts` customers `c0`, `c1`, …, each with `per_customer` subscriptions to a host of its own."""
    ring = KeyRing(base64.b64decode(stage_.sealing_key))

    async def fill() -> None:
        async with await connect(stage_.url, timeout_s=START_S, application_name="bench") as conn:
            await migrate.migrate(conn)
            await partitions.make_ahead(conn, days=2)
            for host in range(hosts):
                for path in range(per_customer):
                    await subscriptions.create(
                        conn,
                        ring=ring,
                        customer_id=CustomerId(f"c{host}"),
                        endpoint_url=f"http://127.0.0.{host + 1}:{stage_.port}/{path}",
                        events=[],
                        description=None,
                    )

    trio.run(fill)


def wait_until(condition: Callable[[], bool], within_s: float, *, every_s: float = 0.02) -> None:
    """Poll until it holds. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not reached within {within_s:g} s")
        time.sleep(every_s)
