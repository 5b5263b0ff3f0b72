"""Keeping roles alive: a role that ends with an error is logged and started again after a growing pause."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from daemon.errors import DatabaseUnavailable
from daemon.log import get

log = get("supervise")

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 0.4
"""Short, because deliveries should go on within 2 s of a lost session, even if it is not the first in a row. The pool
paces connecting by itself."""
LONGEST_CRASH_PAUSE_S: Final = 2.0
HEALTHY_AFTER_S: Final = 1.0
"""A role that ran so long before it broke starts again after the first pause: it had got through."""


async def guard(role: str, run: Callable[[], Awaitable[None]], **keys: object) -> bool:
    """Run `run` once; False if it crashed, which is logged. For tasks that are made anew when there is work."""
    try:
        await run()
    except Exception:
        log.exception("role.crashed", role=role, **keys)
        return False
    return True


async def keep(role: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run `run` until it returns; when it raises, log and run it again. Cancellation passes through.

    An outage is expected and takes one line; anything else is a bug and comes with its traceback.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        began = trio.current_time()
        longest_s = LONGEST_PAUSE_S
        try:
            await run()
        except DatabaseUnavailable as e:
            log.warning("role.waiting_for_database", role=role, error=str(e), retry_in_s=round(pause_s, 2))
        except Exception:
            log.exception("role.crashed", role=role, retry_in_s=round(pause_s, 2))
            longest_s = LONGEST_CRASH_PAUSE_S
        else:
            return
        if trio.current_time() - began > HEALTHY_AFTER_S:
            pause_s = FIRST_PAUSE_S
        await trio.sleep(pause_s)
        pause_s = min(pause_s * 2, longest_s)
