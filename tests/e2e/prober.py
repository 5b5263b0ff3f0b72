"""Somebody who asks the API again and again, and notes what it answered and how long that took."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from tests.e2e.scene import AUTHORIZED

TIMEOUT_S = 10.0
PAUSE_S = 0.1
PATHS = ("/readyz", "/api/v1/ecosystem/webhooks?customer_id=acme")
"""One that needs no key and one that looks a key up: both need the database."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`at` is when it was asked, `status` 0 where no answer came."""

    at: float
    path: str
    status: int
    took_s: float


class Prober:
    """`answers` only grows."""

    def __init__(self, base_url: str) -> None:
        self.answers: list[Answer] = []
        self.stopped = threading.Event()
        self._base_url = base_url

    def between(self, began: float, ended: float) -> list[Answer]:
        """Answers to what was asked in that time."""
        return [answer for answer in self.answers if began <= answer.at < ended]

    def ask(self, path: str) -> None:
        """Ask until stopped."""
        with httpx.Client(base_url=self._base_url, headers=AUTHORIZED, timeout=TIMEOUT_S) as client:
            while not self.stopped.wait(PAUSE_S):
                at = time.monotonic()
                try:
                    status = client.get(path).status_code
                except httpx.HTTPError:
                    status = 0
                self.answers.append(Answer(at, path, status, time.monotonic() - at))


@contextmanager
def probing(base_url: str) -> Generator[Prober]:
    """Asks at each of PATHS until the end of the block."""
    prober = Prober(base_url)
    threads = [threading.Thread(target=prober.ask, args=[path]) for path in PATHS]
    for thread in threads:
        thread.start()
    try:
        yield prober
    finally:
        prober.stopped.set()
        for thread in threads:
            thread.join()
