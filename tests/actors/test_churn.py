"""Subscriptions that come and go while their deliveries are under way."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.support.answers import status
from tests.support.engine import Running, running_engine
from tests.support.receiver import open_receiver

ROUNDS: Final = 1000
AT_ONCE: Final = 8


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.threat("N123")
async def test_a_thousand_that_are_deleted_amid_a_delivery_leave_nothing(migrated_database: str) -> None:
    with trio.fail_after(55):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer_all(status(200, delay_s=0.02))
            await one_life(running, receiver.url())
            await settled(running)
            before = (trio.lowlevel.current_statistics().tasks_living, descriptors())
            async with trio.open_nursery() as nursery:
                for n in range(AT_ONCE):
                    nursery.start_soon(lives, running, receiver.url(f"/{n}"), ROUNDS // AT_ONCE)
            await settled(running)
            running.engine.sender.close_idle()
            await receiver.wait_for_open(0)
            gc.collect()
            # The pool may have grown meanwhile, and a role of the engine may just be at work.
            assert trio.lowlevel.current_statistics().tasks_living <= before[0] + 8
            assert descriptors() <= before[1] + 8
            assert len(receiver.received) > ROUNDS / 4


async def lives(running: Running, url: str, count: int) -> None:
    for _ in range(count):
        await one_life(running, url)


async def one_life(running: Running, url: str) -> None:
    """A subscription, an event for it, and its end while that is being delivered, or just before or after."""
    subscription_id = await running.subscribe(url)
    await running.emit()
    await running.delete(subscription_id)


async def settled(running: Running) -> None:
    await running.until(0, "SELECT count(*) FROM dealix.deliveries", within_s=20)
    while running.engine.roster.counts() != (0, 0):
        await trio.sleep(0.02)
