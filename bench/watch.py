"""What a long run looks like from outside: memory of the daemon and what waits in the tables, sampled on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from statistics import mean, median
from typing import Final, NamedTuple

from bench.parts import Stage
from bench.seeding import left
from bench.serving import Serving

EVERY_S: Final = 1.0


class Sample(NamedTuple):
    """`at_s` is `time.monotonic()`; `waiting` counts outbox rows and unfinished deliveries."""

    at_s: float
    rss_mb: float
    waiting: int


@contextmanager
def watching(on: Stage, daemon: Serving) -> Generator[list[Sample]]:
    """A list that grows by a sample a second as long as the block runs."""
    samples: list[Sample] = []
    over = threading.Event()

    def watch() -> None:
        with on.sql() as db:
            while not over.wait(EVERY_S):
                samples.append(Sample(time.monotonic(), daemon.rss_mb(), left(db)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def between(samples: Sequence[Sample], from_s: float, to_s: float) -> list[Sample]:
    """The samples of that time."""
    return [sample for sample in samples if from_s <= sample.at_s < to_s]


def growth_mb(samples: Sequence[Sample], from_s: float, to_s: float) -> float:
    """By how much memory grew from the first tenth of that time to the last, by the medians of both."""
    tenth_s = (to_s - from_s) / 10
    first = median(s.rss_mb for s in between(samples, from_s, from_s + tenth_s))
    last = median(s.rss_mb for s in between(samples, to_s - tenth_s, to_s))
    return last - first


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through the points (least squares): growth of the second figure by unit of the first."""
    x_mean, y_mean = mean(x for x, _ in points), mean(y for _, y in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)
