"""Rotating secrets, and test-fires: what an endpoint's owner does to see that verifying works."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import stripe
from standardwebhooks import Webhook

from api.verification import HEADERS_EMITTED
from tests.support.answers import status
from tests.support.api import Served
from tests.support.receiver import open_receiver


@pytest.mark.threat("N94", "N99")
async def test_a_rotation_gives_a_new_secret_and_both_sign_until_the_old_one_expires(working_api: Served) -> None:
    async with open_receiver() as receiver:
        made = await working_api.acme.subscribe(receiver.url("/hook"))
        path = f"/webhooks/{made['id']}"
        rotated = (await working_api.acme.post(f"{path}/rotate-secret", {"overlap_seconds": 3600})).json()
        assert set(rotated) == {"id", "secret", "secret_warning", "previous_secret_expires_at"}
        assert rotated["secret"] != made["secret"]
        assert "last" in rotated["secret_warning"]
        expires_at = datetime.fromisoformat(rotated["previous_secret_expires_at"])
        assert 3590 < (expires_at - datetime.now(UTC)).total_seconds() <= 3600
        assert (await working_api.acme.post(f"{path}/test")).json()["delivered"] == 1
        (request,) = await receiver.wait_for(1)
        for secret in (made["secret"], rotated["secret"]):
            stripe.WebhookSignature.verify_header(
                request.body.decode(), request.headers["dealix-signature"], secret, 300
            )
            Webhook(secret).verify(request.body, request.headers)
        at_once = (await working_api.acme.post(f"{path}/rotate-secret", {"overlap_seconds": 0})).json()
        assert at_once["previous_secret_expires_at"] is None
        await working_api.acme.post(f"{path}/test")
        *_, last = await receiver.wait_for(2)
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.WebhookSignature.verify_header(last.body.decode(), last.headers["dealix-signature"], made["secret"])


async def test_a_rotation_without_a_body_overlaps_for_a_day(api: Served) -> None:
    path = f"/webhooks/{(await api.acme.subscribe())['id']}/rotate-secret"
    for answer in (
        await api.client.post(f"/api/v1/ecosystem{path}", headers=api.acme.headers),
        await api.acme.post(path, {}),
        await api.acme.send("POST", path, b""),
    ):
        expires_at = datetime.fromisoformat(answer.json()["previous_secret_expires_at"])
        assert 86_390 < (expires_at - datetime.now(UTC)).total_seconds() <= 86_400


async def test_a_test_fire_is_one_recorded_attempt_whatever_state_the_subscription_is_in(working_api: Served) -> None:
    async with open_receiver() as receiver:
        receiver.answer("/hook", status(200), status(500))
        made = await working_api.acme.subscribe(receiver.url("/hook"), events=["deal.won"])
        path = f"/webhooks/{made['id']}"
        await working_api.acme.patch(path, {"enabled": False})
        good = (await working_api.acme.post(f"{path}/test")).json()
        usual = {"test_event", "matched", "delivered", "failed", "deliveries"}
        assert set(good) == usual | {"enable"}  # it passed, so a disabled endpoint may be enabled
        assert (good["matched"], good["delivered"], good["failed"]) == (1, 1, 0)
        bad = (await working_api.acme.post(f"{path}/test", {"event_type": "deal.lost"})).json()
        assert (set(bad), bad["delivered"], bad["failed"]) == (usual, 0, 1)
        (delivery,) = bad["deliveries"]
        assert set(delivery) == {"status_code", "success", "duration_ms", "error"}
        assert (delivery["status_code"], delivery["success"]) == (500, False)
        first, second = await receiver.wait_for(2)
        assert (first.headers["dealix-event-type"], second.headers["dealix-event-type"]) == (
            "lead.created",
            "deal.lost",
        )
        listed = (await working_api.acme.get("/deliveries", subscription_id=made["id"])).json()["deliveries"]
        assert [one["event_id"] for one in listed] == [bad["test_event"], good["test_event"]]
        shown = (await working_api.acme.get(path)).json()
        assert (shown["enabled"], shown["last_status_code"]) == (False, 500)


async def test_a_test_fire_at_nobody_says_so_and_an_unknown_type_is_400(working_api: Served) -> None:
    path = f"/webhooks/{(await working_api.acme.subscribe())['id']}/test"
    answer = (await working_api.acme.post(path)).json()
    assert answer["failed"] == 1
    assert answer["deliveries"][0]["status_code"] is None
    assert answer["deliveries"][0]["error"]
    refused = await working_api.acme.post(path, {"event_type": "no.such"})
    assert (refused.status_code, refused.json()["code"]) == (400, "unknown_event_type")


async def test_a_test_fire_with_a_secret_that_does_not_open_is_409(working_api: Served) -> None:
    made = await working_api.acme.subscribe()
    await working_api.run("UPDATE dealix.subscriptions SET secret_sealed = 'x'")
    answer = await working_api.acme.post(f"/webhooks/{made['id']}/test")
    assert (answer.status_code, answer.json()["code"]) == (409, "secret_unreadable")


def test_the_header_names_are_those_that_are_sent() -> None:
    assert HEADERS_EMITTED == [
        "Content-Type", "User-Agent", "Dealix-Event-Id", "Dealix-Event-Type", "Dealix-Delivery-Attempt",
        "Dealix-Signature", "webhook-id", "webhook-timestamp", "webhook-signature",
    ]  # fmt: skip
