"""What most cases have in common: a database under load by an application, daemons, endpoints of all sorts."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.e2e import oracle
from tests.e2e.load import customers
from tests.e2e.scene import Scene
from tests.e2e.traffic import Emitter, Receiver, open_emitter
from tests.support.daemon_process import DaemonProcess, Installation, until

PER_SECOND: Final = int(os.environ.get("CHAOS_PER_SECOND", "200"))
QUICK_MS: Final = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80)
"""Two endpoints of each: twenty that are well."""
SLOW_MS: Final = 2000
UNWELL: Final = ("hang",) * 5 + ("flap",) * 5 + ("500",) * 3 + ("drip",) * 2
NAMES: Final = tuple(customers(number=len(QUICK_MS) + len(UNWELL) + 1))
WELL, SLOW, SICK = NAMES[: len(QUICK_MS)], NAMES[len(QUICK_MS)], NAMES[len(QUICK_MS) + 1 :]
QUICK_SHARE: Final = 12
"""How often each customer who is well stands among those that the application emits for, against one of the others."""


@dataclass
class Stage:
    """One test's surroundings. `emit_for` is what the application chooses from."""

    scene: Scene
    installation: Installation
    directory: Path
    environ: Mapping[str, str | int]
    emit_for: list[str]

    @classmethod
    def on(
        cls,
        url: str,
        installation: Installation,
        receiver: Receiver,
        directory: Path,
        environ: Mapping[str, str | int] = MappingProxyType({}),
    ) -> Stage:
        """On an empty database or a migrated one."""
        return cls(Scene(url, receiver), installation, directory, environ, [])

    def start(self, url: str | None = None) -> DaemonProcess:
        """Another daemon, on `url` where the way to the database is to be another one."""
        return self.installation.start(url or self.scene.url, environ=self.environ)

    def invite(self, daemon: DaemonProcess, *, sick: bool = True) -> None:
        """Customers and their endpoints: twenty that are well, and (`sick`) five slow ones and fifteen that fail."""
        self.scene.open()
        for name, delay_ms in zip(WELL, QUICK_MS, strict=True):
            self.scene.subscribe(daemon, name, delay_ms=delay_ms)
            self.scene.subscribe(daemon, name, delay_ms=delay_ms, events=["deal.won"])
        self.emit_for = [*WELL]
        if sick:
            for _ in range(5):
                self.scene.subscribe(daemon, SLOW, delay_ms=SLOW_MS)
            for name, answer in zip(SICK, UNWELL, strict=True):
                self.scene.subscribe(daemon, name, status=answer, healthy=False)
            # Five slow endpoints at eight requests of 2 s take 4 events a second.
            self.emit_for = [*WELL * QUICK_SHARE, SLOW, *SICK]

    @contextmanager
    def load(self, per_second: int = PER_SECOND) -> Generator[Emitter]:
        """The application at work; ended in good order with the block."""
        with open_emitter(self.directory, self.scene.url, self.emit_for, per_second=per_second) as emitter:
            emitter.go_on()
            yield emitter
            emitter.finish()

    def resumed_after(self, emitter: Emitter, since: float, *, within_s: float) -> float:
        """Seconds until an event arrived that was committed after `since`."""
        seen = len([r for r in self.scene.receiver.receipts() if r.at < since])

        def look() -> float:
            committed = emitter.events("committed")
            receipts = self.scene.receiver.receipts_from(seen)
            return next((r.at for r in receipts if committed.get(r.event_id, 0) > since), 0.0)

        return until(look, within_s=within_s, what="a delivery") - since

    def judge(self, emitter: Emitter, *, within_s: float = 90.0) -> oracle.Verdict:
        """The oracle's verdict, and that nothing of a rolled-back transaction was sent."""
        verdict = oracle.judge(self.scene, within_s=within_s)
        rolled_back = emitter.events("rolled back")
        assert rolled_back, "nothing was rolled back: the test shows nothing"
        assert rolled_back.keys().isdisjoint(r.event_id for r in self.scene.receiver.receipts())
        return verdict

    def received(self) -> set[oracle.Claim]:
        """Attempts that the receiver has seen."""
        return {r.claim for r in self.scene.receiver.receipts()}

    def wait_until_dead(self, within_s: float = 5.0) -> None:
        """Until no session of a daemon is left."""
        until(lambda: not self.scene.sessions(), within_s=within_s, what="the killed daemons' sessions are over")


def sleep_until(at: float) -> None:
    """Until a monotonic time: a fault's own length."""
    time.sleep(max(at - time.monotonic(), 0))
