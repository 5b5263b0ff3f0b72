"""A wall clock that is wrong, or jumps: waits, leases and breakers do not go by it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
import trio

from daemon import clock
from tests.support.answers import status
from tests.support.engine import running_engine
from tests.support.receiver import open_receiver

WAIT_S = 0.6


@pytest.mark.threat("N119")
@pytest.mark.parametrize("hours", [-2, 2])
async def test_a_clock_that_jumps_moves_neither_retries_nor_the_breaker(
    migrated_database: str, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    def shifted() -> datetime:
        return datetime.now(UTC) + timedelta(hours=hours)

    delivery = {"retry_schedule_s": [0, WAIT_S, WAIT_S], "breaker_after": 2, "breaker_cooldown_s": WAIT_S}
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database, delivery=delivery) as running:
            receiver.answer("/hook", status(500), status(500), status(200))
            subscription_id = await running.subscribe(receiver.url("/hook"))
            await running.emit()
            await running.logged(1)
            monkeypatch.setattr(clock, "now", shifted)
            monkeypatch.setattr(clock, "unix_s", lambda: int(shifted().timestamp()))
            requests = await receiver.wait_for(3)  # the last one is the probe of a breaker that the second opened
            await running.until(0, "SELECT count(*) FROM dealix.deliveries")
            health = await running.subscription(subscription_id)
    waits = [later.at - earlier.at for earlier, later in pairwise(requests)]
    assert all(WAIT_S * 0.9 < wait < WAIT_S + 3 for wait in waits), waits
    assert health.consecutive_failures == 0
    stamps = [int(r.headers["webhook-timestamp"]) for r in requests]
    assert abs(stamps[1] - stamps[0] - hours * 3600) < 60  # it did jump
