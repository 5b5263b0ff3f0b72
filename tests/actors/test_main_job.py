"""The main job on the engine itself: an event that committed reaches its endpoint, signed, recorded, retried."""

from __future__ import annotations

import json

import trio
from standardwebhooks import Webhook

from tests.support.answers import status
from tests.support.engine import running_engine
from tests.support.receiver import open_receiver


async def test_an_emitted_event_arrives_signed_and_leaves_a_log_row(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            _, secret = await running.subscribe_with_secret(receiver.url("/hook"))
            event_id = await running.emit({"deal_id": 7})
            (request,) = await receiver.wait_for(1)
            assert request.headers["dealix-event-id"] == event_id
            assert json.loads(request.body)["data"] == {"deal_id": 7}
            assert Webhook(secret).verify(request.body, request.headers)
            assert await running.log_rows(1) == [(1, "delivered", 200, None)]
            assert await running.count() == 0


async def test_a_failed_attempt_is_retried_with_the_next_number_and_identical_bytes(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer("/hook", status(500), status(200))
            await running.subscribe(receiver.url("/hook"))
            await running.emit()
            await running.log_rows(1)
            await running.make_due()
            first, second = await receiver.wait_for(2)
            assert (first.headers["dealix-delivery-attempt"], second.headers["dealix-delivery-attempt"]) == ("1", "2")
            assert first.body == second.body
            assert [row[:3] for row in await running.log_rows(2)] == [(1, "retry", 500), (2, "delivered", 200)]
            assert await running.count() == 0


async def test_a_daemon_without_work_leaves_the_database_in_peace(migrated_database: str) -> None:
    """Its looks are some eight a second; a loop that forgets to rest makes hundreds, and a tenth of a core."""
    transactions = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    with trio.fail_after(20):
        async with running_engine(migrated_database) as running:
            await running.share(64)
            await trio.sleep(2)  # what sessions count is shown when they have been idle for a second
            before = (await running.rows(transactions))[0][0]
            await trio.sleep(4)
            assert (await running.rows(transactions))[0][0] - before < 4 * 25
