"""A moderate load on many endpoints: who its customers are, and what they subscribe."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Final

from daemon.store.shards import shard_of
from tests.e2e.scene import Scene
from tests.support.daemon_process import DaemonProcess

PER_SECOND: Final = 100
PER_SUBSCRIPTION: Final = 8
"""The default of delivery.per_subscription: so many requests may be in flight to one endpoint."""
DELAYS_MS: Final = (2, 3, 5, 8, 30, 80)
"""How long the endpoints take: most a few milliseconds, some so long that every fault hits requests in flight."""


def customers(shards: range = range(64), number: int = len(DELAYS_MS)) -> list[str]:
    """Names of customers whose events are in these shards."""
    names = (f"customer-{n}" for n in count())
    fitting = (name for name in names if shard_of(name) in shards)
    return [next(fitting) for _ in range(number)]


def subscribe_all(
    scene: Scene, daemon: DaemonProcess, names: Sequence[str], delays_ms: Sequence[int] = DELAYS_MS
) -> None:
    """Two endpoints for each customer, one of which wants only won deals."""
    for name, delay_ms in zip(names, delays_ms, strict=True):
        scene.subscribe(daemon, name, delay_ms=delay_ms)
        scene.subscribe(daemon, name, delay_ms=delay_ms, events=["deal.won"])
