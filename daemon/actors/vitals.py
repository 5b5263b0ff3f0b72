"""How a daemon is: what its actors know of themselves, read where they keep it, for the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import trio

from daemon.actors.lanes import LaneUse
from daemon.observe import Counts, Histogram
from daemon.store.pool import PoolStatistics

LOOK_S: Final = 0.1
"""How often the event loop is asked whether it is late: a twentieth of a percent of a core."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """One daemon at one moment; `counts` are its own and go on counting, the rest is a copy.

    `subscriptions` are those with an actor, `claims` all that are in memory, `mailboxes` those of them that wait to be
    sent, `event_bytes` the size of their events. `results_waiting` lie on the recorder's channel, beside the batch in
    its hand. `is_recording` is False while the database takes no results. `members` are the daemons that share the 64
    shards, 0 before the first census.
    """

    counts: Counts
    lanes: Mapping[str, LaneUse]
    gate_waiting: int
    subscriptions: int
    claims: int
    mailboxes: int
    event_bytes: int
    results_waiting: int
    is_recording: bool
    pools: Mapping[str, PoolStatistics]
    is_listening: bool
    shards: int
    members: int


async def measure_loop_lag(lag_s: Histogram) -> None:
    """How much later than it asked for a task is run: what everything in this process waits for. Never ends."""
    while True:
        due = trio.current_time() + LOOK_S
        await trio.sleep_until(due)
        lag_s.add(trio.current_time() - due)
