"""A daemon that is ready to work and answers at its API, and what it weighs."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.arrivals import Arrivals
from bench.cpu import Meter
from bench.parts import START_S, Stage, wait_until

READY_POLL_S: Final = 0.01
KEPT_S: Final = 5.0
"""The daemon closes a connection that was idle for 15 s."""


@dataclass(frozen=True)
class Serving:
    """One daemon process. `ready_s` is from its start until `/readyz` said yes."""

    pid: int
    port: int
    ready_s: float

    def rss_mb(self) -> float:
        """Resident memory at this moment, in MB of 10^6 bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise ProcessLookupError(self.pid)


@contextmanager
def serving(on: Stage, **settings: str) -> Generator[Serving]:
    """Start a daemon, wait until it is ready, stop it at the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    began = time.monotonic()
    with on.daemon(DEALIX_API__BIND=f"127.0.0.1:{port}", **settings) as process:
        wait_until(lambda: _is_ready(port), START_S, every_s=READY_POLL_S)
        yield Serving(process.pid, port, time.monotonic() - began)


def _is_ready(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False


class Api:
    """One open connection to a daemon's API, with a key."""

    def __init__(self, daemon: Serving, key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=START_S)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._called_at = 0.0

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The JSON of the answer to a request under the API's base path. Raises Refused for any but 200–299."""
        text = None if body is None else json.dumps(body)
        if time.monotonic() - self._called_at > KEPT_S:
            self._connection.close()  # the request opens it again
        self._called_at = time.monotonic()
        self._connection.request(method, f"/api/v1/ecosystem{path}", text, self._headers)
        response = self._connection.getresponse()
        answer = response.read()
        if not 200 <= response.status <= 299:
            raise Refused(f"{method} {path}: {response.status} {answer.decode()}")
        return json.loads(answer)


class Refused(Exception):
    """The API did not do what it was asked."""


@dataclass(frozen=True)
class Stretch:
    """A part of a drain: so many deliveries, and what they cost. `others`: the machine's share that strangers took."""

    deliveries: int
    seconds: float
    daemons_s: list[float]
    postgres_s: float
    others: float

    @property
    def per_second(self) -> float:
        """Deliveries a second."""
        return self.deliveries / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU of all daemons and of Postgres for each delivery."""
        return (sum(self.daemons_s) + self.postgres_s) / self.deliveries * 1e6


def stretch(on: Stage, daemons: Sequence[Serving], arrivals: Arrivals, between: tuple[int, int]) -> Stretch:
    """Measure from the first so-many-th POST since the last `take` to the last: the ends of a drain are left out."""
    first, last = between
    limit_s = 30 + last / 200
    arrivals.wait_for(first, limit_s)
    count = arrivals.count()
    names = {f"daemon{n}": daemon.pid for n, daemon in enumerate(daemons)}
    meter = Meter(postgres=on.postgres.pid, receiver=on.receiver.pid, **names)
    arrivals.wait_for(last, limit_s)
    costs = meter.costs()
    return Stretch(
        arrivals.count() - count,
        costs.wall_s,
        [costs.cpu_s[name] for name in names],
        costs.cpu_s["postgres"],
        costs.others,
    )
