"""The log over HTTP, and retries by hand."""

from __future__ import annotations

from datetime import timedelta

import pytest
import stripe

from daemon import clock
from tests.support.answers import status
from tests.support.api import Served
from tests.support.log import Row, write
from tests.support.receiver import open_receiver

EVENT = {"customer_id": "acme", "event_type": "deal.won"}
W1, W2 = "whk_" + "1" * 24, "whk_" + "2" * 24
LISTED = {
    "id", "subscription_id", "event_id", "event_type", "attempt", "endpoint_url", "status_code", "success", "error",
    "duration_ms", "created_at",
}  # fmt: skip


async def log(api: Served, *rows: Row) -> list[str]:
    async with api.pool.connection(10) as conn:
        return await write(conn, rows)


async def test_the_list_has_what_the_contract_says_and_walks_by_cursor(api: Served) -> None:
    made = await log(api, *(Row(W1, f"e{n}", outcome="retry" if n % 2 else "delivered") for n in range(9)))
    await log(api, Row(W2, customer_id="globex"))
    page = (await api.acme.get("/deliveries", limit=4)).json()
    assert set(page) == {"customer_id", "count", "deliveries", "next_cursor"}
    assert set(page["deliveries"][0]) == LISTED
    assert page["deliveries"][0]["created_at"].endswith("Z")
    found = [one["id"] for one in page["deliveries"]]
    while page["next_cursor"]:
        page = (await api.acme.get("/deliveries", limit=4, cursor=page["next_cursor"])).json()
        found += [one["id"] for one in page["deliveries"]]
    assert found == sorted(made, reverse=True)
    assert (await api.ops.get("/deliveries", customer_id="acme")).json()["count"] == 9


async def test_filters_over_http(api: Served) -> None:
    now = clock.now()
    old, failed, lost = await log(
        api,
        Row(W1, "e1", created_at=now - timedelta(minutes=10)),
        Row(W1, "e2", outcome="failed", status_code=404, created_at=now - timedelta(minutes=5)),
        Row(W2, "e2", event_type="deal.lost"),
    )
    mid = clock.iso(now - timedelta(minutes=7))
    queries: list[tuple[dict[str, str | bool], set[str]]] = [
        ({}, {old, failed, lost}),
        ({"success_only": True}, {old, lost}),
        ({"failed_only": True}, {failed}),
        ({"failed_only": "1"}, {failed}),
        ({"subscription_id": W1}, {old, failed}),
        ({"subscription_id": "whk_" + "f" * 24}, set()),
        ({"event_id": "e2"}, {failed, lost}),
        ({"event_id": "e2", "subscription_id": W1, "failed_only": True}, {failed}),
        ({"event_type": "deal.lost"}, {lost}),
        ({"event_type": "no.such"}, set()),
        ({"since": mid}, {failed, lost}),
        ({"until": mid}, {old}),
        ({"since": mid, "until": mid}, set()),
        ({"until": "1969-01-01T00:00:00Z"}, set()),
        ({"since": "0001-01-01T00:00:00+14:00", "until": "9999-12-31T23:59:59-14:00"}, {old, failed, lost}),
    ]
    for query, expected in queries:
        answer = await api.acme.get("/deliveries", **query)
        assert {one["id"] for one in answer.json()["deliveries"]} == expected, query
        assert (await api.globex.get("/deliveries", **query)).json()["deliveries"] == []


async def test_both_flags_are_400_and_a_backward_range_is_422(api: Served) -> None:
    both = await api.acme.get("/deliveries", success_only=True, failed_only=True)
    assert (both.status_code, both.json()["code"]) == (400, "conflicting_filters")
    assert (await api.acme.get("/deliveries", success_only=True, failed_only=False)).status_code == 200
    backward = await api.acme.get("/deliveries", since="2026-01-02T00:00:00Z", until="2026-01-01T00:00:00Z")
    assert (backward.status_code, backward.json()["errors"][0]["field"]) == (422, "until")


@pytest.mark.threat("N103")
async def test_a_cursor_is_good_for_its_own_list_only(api: Served) -> None:
    await log(api, *(Row(W1, f"e{n}") for n in range(3)), *(Row(W1, f"e{n}", "globex") for n in range(3)))
    cursor = (await api.acme.get("/deliveries", limit=1)).json()["next_cursor"]
    assert (await api.acme.get("/deliveries", limit=2, cursor=cursor)).json()["count"] == 2
    for _ in range(2):
        await api.acme.subscribe()
    other_list = (await api.acme.get("/webhooks", limit=1)).json()["next_cursor"]
    damaged = [cursor[:-1], cursor[1:], cursor + "A", cursor[:-1] + ("A" if cursor[-1] != "A" else "B"), "A" * 200, "é"]
    for bad in (other_list, *damaged):
        answer = await api.acme.get("/deliveries", cursor=bad)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "cursor"), bad
    assert (await api.globex.get("/deliveries", cursor=cursor)).status_code == 422
    assert (await api.acme.get("/deliveries", cursor=cursor, failed_only=True)).status_code == 422


async def test_an_attempt_shows_the_request_as_it_was_sent_and_the_answer(working_api: Served) -> None:
    async with open_receiver() as receiver:
        receiver.answer("/hook", status(500, b"x" * 5000, headers={"X-Trace": "1", "Set-Cookie": "a"}))
        made = await working_api.acme.subscribe(receiver.url("/hook"))
        await working_api.ops.post("/events/emit", EVENT | {"payload": {"s": "é", "n": 1.0}}, wait_s=10)
        (sent,) = await receiver.wait_for(1)
        (listed,) = (await working_api.acme.get("/deliveries")).json()["deliveries"]
        shown = (await working_api.acme.get(f"/deliveries/{listed['id']}")).json()
        assert {name: shown[name] for name in LISTED} == listed
        assert (shown["outcome"], listed["success"], listed["error"]) == ("retry", False, None)
        assert shown["request"]["body"].encode() == sent.body
        for name, value in shown["request"]["headers"]:
            assert sent.headers[name.lower()] == value
        assert len(shown["request"]["headers"]) == 9
        signature = dict(shown["request"]["headers"])["Dealix-Signature"]
        stripe.WebhookSignature.verify_header(shown["request"]["body"], signature, made["secret"], 300)
        answered = shown["response"]
        assert (answered["status_code"], answered["body"], answered["truncated"]) == (500, "x" * 4096, True)
        assert "x-trace" in {name.lower() for name, _ in answered["headers"]}
        assert made["secret"] not in str(shown)


async def test_an_attempt_without_an_answer_and_one_whose_event_retention_removed(api: Served) -> None:
    refused, bare = await log(
        api,
        Row(W1, outcome="retry", status_code=None, error="The connection was refused", response_headers=None),
        Row(W1, outcome="interrupted", status_code=None, signature=None, webhook_signature=None, response_headers=None),
    )
    shown = (await api.acme.get(f"/deliveries/{refused}")).json()
    assert (shown["response"], shown["error"]) == (None, "The connection was refused")
    assert shown["request"]["body"] is None
    assert dict(shown["request"]["headers"])["webhook-timestamp"] == "1790000000"
    assert (await api.acme.get(f"/deliveries/{bare}")).json()["request"]["headers"] == []


async def test_a_retry_sends_the_same_bytes_as_the_next_attempt(working_api: Served) -> None:
    async with open_receiver() as receiver:
        receiver.answer("/hook", status(404), status(200), status(500))
        await working_api.acme.subscribe(receiver.url("/hook"))
        await working_api.ops.post("/events/emit", EVENT | {"payload": {"n": 1.0}}, wait_s=10)
        (failed,) = (await working_api.acme.get("/deliveries")).json()["deliveries"]
        assert failed["status_code"] == 404
        path = f"/deliveries/{failed['id']}/retry"
        answer = await working_api.acme.post(path)
        assert answer.status_code == 202
        duty = {name: failed[name] for name in ("event_id", "subscription_id")}
        assert answer.json() == duty | {"attempt": 2, "state": "pending"}
        first, second = await receiver.wait_for(2)
        assert second.body == first.body
        assert second.headers["dealix-delivery-attempt"] == "2"
        await all_recorded(working_api, 2)
        assert (await working_api.ops.post(path)).json()["attempt"] == 3
        await receiver.wait_for(3)
        log = await all_recorded(working_api, 3)
        assert [(one["attempt"], one["status_code"]) for one in log] == [(3, 500), (2, 200), (1, 404)]
        assert (await working_api.acme.get(f"/deliveries/{log[0]['id']}")).json()["outcome"] == "exhausted"
        assert await working_api.rows("SELECT 1 FROM dealix.deliveries") == []


async def all_recorded(api: Served, count: int) -> list[dict[str, object]]:
    """The log, once it has that many rows."""
    while (page := (await api.acme.get("/deliveries")).json())["count"] < count:
        pass
    return page["deliveries"]


async def test_a_retry_is_409_while_disabled_and_410_when_subscription_or_event_is_gone(api: Served) -> None:
    made = await api.acme.subscribe()
    event_id = (await api.ops.post("/events/emit", EVENT)).json()["event_id"]
    sent, lost = await log(api, Row(made["id"], event_id, outcome="failed"), Row(made["id"], "order-0"))
    expected = {"code": "event_gone", "status": 410}
    assert expected.items() <= (await api.acme.post(f"/deliveries/{lost}/retry")).json().items()
    await api.acme.patch(f"/webhooks/{made['id']}", {"enabled": False})
    disabled = await api.acme.post(f"/deliveries/{sent}/retry")
    assert (disabled.status_code, disabled.json()["code"]) == (409, "subscription_disabled")
    await api.acme.delete(f"/webhooks/{made['id']}")
    gone = await api.acme.post(f"/deliveries/{sent}/retry")
    assert (gone.status_code, gone.json()["code"]) == (410, "subscription_gone")
    assert await api.rows("SELECT 1 FROM dealix.deliveries") == []


async def test_an_id_of_no_attempt_is_404(api: Served) -> None:
    for attempt_id in ("dlv_" + "0" * 24, "dlv_" + "f" * 24, "evt_" + "0" * 24, "x", "%00", "9" * 400):
        assert (await api.acme.get(f"/deliveries/{attempt_id}")).status_code == 404
        assert (await api.acme.post(f"/deliveries/{attempt_id}/retry")).status_code == 404
