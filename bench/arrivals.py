"""What arrived at the receiver, when, and whether it was exactly what had to: no figure without that."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench.figures import Untrue
from bench.parts import Stage, wait_until

POLL_S: Final = 0.1
SETTLE_S: Final = 1.0
"""After the last expected arrival: a duplicate would come within it."""

Duty = tuple[str, str]
"""An event's id and the path it has to go to. Each subscription of a benchmark has a path of its own."""


class Arrival(NamedTuple):
    """One POST; `at_ns` is CLOCK_MONOTONIC, the moment its last byte was read."""

    at_ns: int
    event_id: str
    path: str

    @property
    def duty(self) -> Duty:
        """Which event at which endpoint."""
        return self.event_id, self.path


class Arrivals:
    """Reads the log that the stage's receiver keeps."""

    def __init__(self, on: Stage) -> None:
        self._receiver: subprocess.Popen[bytes] = on.receiver
        self._log: Path = on.arrivals_log
        self._read_bytes = 0
        self._taken = 0

    def _requests(self) -> int:
        self._receiver.send_signal(signal.SIGUSR1)
        assert self._receiver.stdout is not None
        return json.loads(self._receiver.stdout.readline())["requests"]

    def count(self) -> int:
        """POSTs since the last `take`."""
        return self._requests() - self._taken

    def wait_for(self, count: int, within_s: float) -> None:
        """Until so many POSTs came since the last `take`. Raises TimeoutError."""
        wait_until(lambda: self.count() >= count, within_s, every_s=POLL_S)

    def take(self) -> list[Arrival]:
        """What came since the last `take`, in order."""
        self._requests()  # has it write out what it holds
        with self._log.open("rb") as file:
            file.seek(self._read_bytes)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]  # a line may be half written: its buffer was full
        self._read_bytes += len(text)
        found: list[Arrival] = []
        for line in text.decode("ascii").splitlines():
            at_ns, event_id, _, path = line.split(" ")
            found.append(Arrival(int(at_ns), event_id, path))
        self._taken += len(found)
        return found


def check_once(arrived: Sequence[Arrival], expected: Collection[Duty]) -> None:
    """Raises Untrue unless each of `expected` arrived, once, and nothing else."""
    duties = {arrival.duty for arrival in arrived}
    wanted = set(expected)
    missing, strange, twice = len(wanted - duties), len(duties - wanted), len(arrived) - len(duties)
    if missing or strange or twice:
        raise Untrue(
            f"of {len(wanted)} deliveries {missing} did not arrive, {twice} arrived twice, {strange} were not expected"
        )
