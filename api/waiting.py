"""Waiting for the first attempts of an event, for a caller who asked to know how they went."""

from __future__ import annotations

from typing import Final

import trio

from api.services import WORK_S
from daemon.errors import DatabaseUnavailable
from daemon.ids import CustomerId
from daemon.log import get
from daemon.store import events
from daemon.store.emit import Emitted
from daemon.store.pool import Pool

log = get("api")

FIRST_LOOK_S: Final = 0.02
LONGEST_PAUSE_S: Final = 0.5
GROWTH: Final = 1.5
"""A healthy endpoint is seen 20–70 ms after its attempt ended; thirty seconds of a hanging one cost 70 looks."""


async def first_attempts(
    pool: Pool, customer_id: CustomerId, emitted: Emitted, *, wait_s: float, fresh: bool
) -> tuple[int, int]:
    """How many of the first attempts have delivered and failed, once all have ended or after `wait_s`.

    `fresh`: the event was made by this very request, so that without waiting there is nothing to be seen yet. The
    event is committed: whatever happens while looking is no failure of the request, and only ends the look.
    """
    if not emitted.matched or (fresh and not wait_s):
        return 0, 0
    seen = events.Progress(0, 0)
    deadline = trio.current_time() + wait_s
    pause_s = FIRST_LOOK_S
    try:
        async with pool.connection(WORK_S) as conn:
            since = await events.between(conn, customer_id, emitted.event_id)
        while since is not None:
            async with pool.connection(WORK_S) as conn:
                seen = await events.progress(conn, customer_id, emitted.event_id, since=since[0])
            left_s = deadline - trio.current_time()
            if seen.delivered + seen.failed >= emitted.matched or left_s <= 0:
                break
            await trio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * GROWTH, LONGEST_PAUSE_S)
    except DatabaseUnavailable as e:
        log.warning("wait.ended", event_id=emitted.event_id, reason=str(e))
    return seen.delivered, seen.failed
