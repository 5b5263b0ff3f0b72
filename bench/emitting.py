"""Emitters as processes of their own, started and evaluated from the benchmark."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Final, NamedTuple

import click
import msgspec

from bench.arrivals import Arrival, Duty
from bench.emitter import Plan
from bench.parts import Stage
from bench.seeding import DATA

LEAD_S: Final = 1.5
"""From the start of the processes to the first emit: they import and connect meanwhile."""
THREADS: Final = 8
"""Emitters in one process: a Python thread costs little while it waits, a process much at its start."""
LATE_SHARE: Final = 0.05
"""Of the load's length: so much later than planned the last emit may be, else the machine did not bear the load."""


class Emit(NamedTuple):
    """One call: when it was meant to be made, was made, and returned, in ns of CLOCK_MONOTONIC."""

    planned_ns: int
    called_ns: int
    returned_ns: int
    event_id: str
    customer: str

    @property
    def duty(self) -> Duty:
        """Every customer has one subscription, at a path that is its name."""
        return self.event_id, f"/{self.customer}"


class NotThatFast(click.ClickException):
    """The emitters did not keep their times: what was measured is not the load that was asked for."""


@dataclass(frozen=True)
class Pace:
    """So many events a second for so long, made by so many emitters in turns, `each` in one transaction."""

    per_second: float
    seconds: float
    emitters: int = 1
    each: int = 1

    @property
    def events(self) -> int:
        """All of them."""
        return round(self.per_second * self.seconds)


class Load:
    """A load that is going on. `events` is how many emits there will be, `start_ns` and `end_ns` when."""

    def __init__(
        self, events: int, start_ns: int, end_ns: int, running: list[tuple[subprocess.Popen[bytes], IO[bytes]]]
    ) -> None:
        self.events = events
        self.start_ns = start_ns
        self.end_ns = end_ns
        self._running = running

    def wait(self) -> list[Emit]:
        """All emits, once the last one is made. Raises NotThatFast where they were not made in time."""
        emits: list[Emit] = []
        for process, said in self._running:
            if process.wait() != 0:
                raise NotThatFast(f"an emitter ended with {process.returncode}")
            said.seek(0)
            emits += [_parsed(line) for line in said.read().decode("ascii").splitlines()]
        late_s = (max(e.called_ns for e in emits) - self.end_ns) / 1e9
        if late_s > max(LATE_SHARE * (self.end_ns - self.start_ns) / 1e9, 0.1):
            raise NotThatFast(f"the last emit was made {late_s:.1f} s late: the machine does not bear this load")
        if len(emits) != self.events:
            raise NotThatFast(f"{len(emits)} emits instead of {self.events}")
        return emits


def _parsed(line: str) -> Emit:
    planned, called, returned, event_id, customer = line.split(" ")
    return Emit(int(planned), int(called), int(returned), event_id, customer)


@contextmanager
def emitting(on: Stage, pace: Pace, customers: Sequence[str], *, post: bool = False) -> Generator[Load]:
    """Emit events of 1 KB, the customers in turns. `post`: each to the receiver directly, as a floor."""
    interval_ns = 1e9 / pace.per_second
    start_ns = time.monotonic_ns() + int(LEAD_S * 1e9)
    running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    try:
        for first in range(0, pace.emitters, THREADS):
            plan = Plan(
                url=on.url,
                start_ns=start_ns,
                interval_ns=interval_ns,
                events=pace.events,
                emitters=pace.emitters,
                each=pace.each,
                own=list(range(first, min(first + THREADS, pace.emitters))),
                customers=list(customers),
                data=DATA,
                post=("127.0.0.1", on.port) if post else None,
            )
            running.append(_start(plan))
        yield Load(pace.events, start_ns, start_ns + int(pace.events * interval_ns), running)
    finally:
        for process, said in running:
            process.kill()
            process.wait()
            said.close()


def _start(plan: Plan) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the load
    process = subprocess.Popen([sys.executable, "-m", "bench.emitter"], stdin=subprocess.PIPE, stdout=said)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(plan))
    process.stdin.close()
    return process, said


def latencies_ms(
    emits: Iterable[Emit], arrived: Iterable[Arrival], of: Callable[[Emit], bool] = lambda _: True
) -> list[float]:
    """From each emit's call to its (first) arrival, in milliseconds, in the order of the calls."""
    at_ns: dict[Duty, int] = {}
    for arrival in arrived:
        at_ns.setdefault(arrival.duty, arrival.at_ns)
    calls = sorted((e.called_ns, e.duty) for e in emits if of(e))
    return [(at_ns[duty] - called_ns) / 1e6 for called_ns, duty in calls]


def percentile(values: Sequence[float], share: float) -> float:
    """The least of `values` that at least `share` (0–1) of them do not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
