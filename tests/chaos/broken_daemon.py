"""Run as a program of its own: the daemon with one bug built in, to show that the oracle finds it.

The first argument names the bug, the others are the daemon's. The product has no switch for this.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import count
from typing import Final

from daemon.__main__ import main
from daemon.actors import delivery
from daemon.ids import SubscriptionId
from daemon.model import Outcome
from daemon.sender.connection import Gate
from daemon.sender.endpoint import Endpoint
from daemon.store import shards
from daemon.store.connection import Connection

RARE: Final = 1000
send: Final = Endpoint.post
number: Final = count(1)


async def drop_one(self: Endpoint, request: Callable[[], bytes], gate: Gate) -> Outcome:
    """Every thousandth request is not made, and taken for delivered."""
    if next(number) % RARE:
        return await send(self, request, gate)
    request()
    return Outcome(200, None, None, 1)


async def send_one_twice(self: Endpoint, request: Callable[[], bytes], gate: Gate) -> Outcome:
    """Every thousandth request is made once more."""
    if not next(number) % RARE:
        await send(self, request, gate)
    return await send(self, request, gate)


async def hear_of_no_change(conn: Connection, known: Mapping[SubscriptionId, int]) -> list[SubscriptionId]:
    """However a subscription was changed, it is taken for the same."""
    return []


def build_in(bug: str) -> None:
    if bug == "drops":
        Endpoint.post = drop_one
    elif bug == "doubles":
        Endpoint.post = send_one_twice
    elif bug == "ignores a disable":
        shards.changed = hear_of_no_change
        delivery.Delivery.suspend = lambda self: None  # noqa: ARG005 - it has to look like the method
    else:
        assert bug == "none", bug


if __name__ == "__main__":
    build_in(sys.argv.pop(1))
    main()
