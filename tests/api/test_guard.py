"""The guard of addresses stands before every request that goes out, whoever asked for it."""

from __future__ import annotations

import pytest
import trio

from tests.support.api import BASE, Served, open_api
from tests.support.receiver import open_receiver


@pytest.mark.threat("N32")
async def test_neither_test_fire_nor_retry_nor_recovery_reaches_what_is_not_allowed_any_more(
    migrated_database: str,
) -> None:
    event = {"customer_id": "acme", "event_type": "deal.won"}
    once = {"retry_schedule_s": [0], "timeout_s": 1}
    with trio.fail_after(40):
        async with open_receiver() as receiver:
            url = f"https://127.0.0.1:{receiver.port}/"  # whose certificate nobody vouches for: it is dialled, no more
            async with open_api(migrated_database, working=True, delivery=once) as served:
                made = await served.acme.subscribe(url)
                await served.ops.post("/events/emit", event, wait_s=10)
                (delivery,) = (await served.acme.get("/deliveries")).json()["deliveries"]
            visits = receiver.connections
            assert visits > 0
            closed = {"allow_localhost": False}
            async with open_api(migrated_database, working=True, delivery=once, egress=closed) as served:
                fired = (await served.acme.post(f"/webhooks/{made['id']}/test")).json()
                assert "loopback" in fired["deliveries"][0]["error"]
                assert (await served.acme.post(f"/deliveries/{delivery['id']}/retry")).status_code == 202
                await blocked(served, 1)
                recovery = {"since": "2026-01-01T00:00:00Z", "status": "all"}
                assert (await served.acme.post(f"/webhooks/{made['id']}/recover", recovery)).status_code == 202
                await blocked(served, 2)
                assert (await served.acme.post("/webhooks", {"endpoint_url": url})).status_code == 422
            assert receiver.connections == visits


async def blocked(served: Served, count: int) -> None:
    """Wait until so many attempts, test-fires apart, ended with a blocked address."""
    statement = (
        "SELECT count(*) FROM dealix.attempts a JOIN dealix.events e ON e.id = a.event_id "
        "WHERE a.error LIKE '%%is a loopback address%%'"
    )
    while (await served.rows(statement))[0][0] < count:
        await trio.sleep(0.02)


@pytest.mark.threat("N62")
async def test_an_endpoint_that_is_our_own_api_makes_no_event_of_an_event(working_api: Served) -> None:
    await working_api.acme.subscribe(f"{working_api.url}{BASE}/events/emit")
    event = {"customer_id": "acme", "event_type": "deal.won"}
    answer = (await working_api.ops.post("/events/emit", event, wait_s=10)).json()
    assert (answer["delivered"], answer["failed"]) == (0, 1)
    (delivery,) = (await working_api.acme.get("/deliveries")).json()["deliveries"]
    assert delivery["status_code"] == 401
    assert await working_api.rows("SELECT count(*) FROM dealix.events") == [(1,)]
