"""traceparent over HTTP: taken with an emit, kept with the event, sent on to whoever asked for it."""

from __future__ import annotations

import httpx
import pytest

from tests.support.answers import status
from tests.support.api import BASE, Served
from tests.support.receiver import open_receiver
from tests.support.traceparents import BAD, GIVEN, GOOD, new

EVENT = {"customer_id": "acme", "event_type": "deal.won"}


async def emit(api: Served, *headers: str, path: str = "/events/emit", body: object = EVENT) -> httpx.Response:
    given = [("Authorization", api.ops.headers["Authorization"]), *[("TraceParent", one) for one in headers]]
    answer = await api.client.post(BASE + path, json=body, headers=given)
    assert answer.status_code == 202, answer.text
    return answer


async def stored(api: Served) -> list[str | None]:
    return [row[0] for row in await api.rows("SELECT traceparent FROM dealix.events ORDER BY created_at, id")]


async def test_an_emit_takes_the_header_and_a_batch_takes_it_for_all_of_it(api: Served) -> None:
    await emit(api, GIVEN)
    assert await stored(api) == [GIVEN]
    other = new()
    await emit(api, other, path="/events/emit/batch", body={"events": [EVENT, EVENT | {"event_id": "own"}]})
    assert sorted(one or "" for one in await stored(api)) == sorted([GIVEN, other, other])
    await emit(api)
    assert (await stored(api))[-1] is None


async def test_a_header_of_a_later_version_is_taken_as_far_as_it_is_known(api: Served) -> None:
    for header, understood in GOOD.items():
        await emit(api, header)
        assert (await stored(api))[-1] == understood, header


@pytest.mark.threat("N64")
async def test_a_malformed_header_or_two_of_them_are_ignored(api: Served) -> None:
    sendable = [one for one in BAD if one.isascii() and one.isprintable() and len(one) < 8000 and one == one.strip()]
    assert len(sendable) > 12
    for header in sendable:
        await emit(api, header)
    await emit(api, GIVEN, new())
    await emit(api, GIVEN, GIVEN)
    assert await stored(api) == [None] * (len(sendable) + 2)


async def test_only_who_asks_for_it_gets_it_and_the_log_shows_it_as_it_was_sent(working_api: Served) -> None:
    api = working_api
    async with open_receiver() as receiver:
        receiver.answer("/asks", status(500), status(200))
        asks = await api.acme.subscribe(receiver.url("/asks"), propagate_trace_context=True)
        does_not = await api.acme.subscribe(receiver.url("/does-not"))
        assert (asks["propagate_trace_context"], does_not["propagate_trace_context"]) == (True, False)
        await emit(api, GIVEN)
        (asked,) = await receiver.wait_for(1, "/asks")
        (unasked,) = await receiver.wait_for(1, "/does-not")
        assert asked.headers["traceparent"] == GIVEN
        assert "traceparent" not in unasked.headers
        await emit(api)  # nothing to send
        assert "traceparent" not in (await receiver.wait_for(2, "/asks"))[1].headers
        failed = (await attempts(api, asks["id"], 2))[-1]
        await api.acme.post(f"/deliveries/{failed['id']}/retry")
        assert (await receiver.wait_for(3, "/asks"))[2].headers["traceparent"] == GIVEN
        for one in await attempts(api, asks["id"], 3) + await attempts(api, does_not["id"], 2):
            shown = (await api.acme.get(f"/deliveries/{one['id']}")).json()["request"]["headers"]
            at = [r for r in receiver.received if r.headers["dealix-event-id"] == one["event_id"]]
            (sent,) = [
                r
                for r in at
                if r.path == shown_path(one) and r.headers["dealix-delivery-attempt"] == str(one["attempt"])
            ]
            assert {name.lower(): value for name, value in shown}.get("traceparent") == sent.headers.get("traceparent")


def shown_path(attempt: dict[str, str]) -> str:
    return "/" + attempt["endpoint_url"].rpartition("/")[2]


async def attempts(api: Served, subscription_id: str, count: int) -> list[dict[str, str]]:
    """The newest `count` attempts to an endpoint, newest first, as soon as they are in the log."""
    while True:
        page = (await api.acme.get("/deliveries", subscription_id=subscription_id, limit=count)).json()
        if page["count"] == count:
            return page["deliveries"]


async def test_the_wish_can_be_changed_and_holds_for_the_next_attempt(working_api: Served) -> None:
    api = working_api
    async with open_receiver() as receiver:
        made = await api.acme.subscribe(receiver.url("/hook"))
        path = f"/webhooks/{made['id']}"
        for wish in (True, False):
            changed = await api.acme.patch(path, {"propagate_trace_context": wish})
            assert changed.json()["propagate_trace_context"] is wish
            assert (await api.acme.get(path)).json()["propagate_trace_context"] is wish
            await emit(api, GIVEN)
            sent = (await receiver.wait_for(1 if wish else 2))[-1]
            assert sent.headers.get("traceparent") == (GIVEN if wish else None)
    assert (await api.acme.patch(path, {"description": "x"})).json()["propagate_trace_context"] is False
    for bad in ("yes", 1, None):
        assert (await api.acme.patch(path, {"propagate_trace_context": bad})).status_code == 422


@pytest.mark.threat("N64")
async def test_what_somebody_wrote_into_the_table_does_not_become_another_header(working_api: Served) -> None:
    api = working_api
    async with open_receiver() as receiver:
        await api.acme.subscribe(receiver.url("/hook"), propagate_trace_context=True)
        for evil in (f"{GIVEN}\r\nX-Evil: 1", "x\ny", "é", ""):
            async with api.pool.connection(5) as conn, conn.transaction():
                await conn.execute("SELECT event_id FROM dealix.emit('acme', 'deal.won', '{}')")
                await conn.execute("UPDATE dealix.events SET traceparent = %s", (evil,))
        for one in await receiver.wait_for(4):
            assert not {"traceparent", "x-evil"} & set(one.headers)


async def test_the_document_tells_of_the_header_where_it_is_taken(api: Served) -> None:
    document = (await api.client.get("/openapi.json")).json()
    taking = {
        path.removeprefix(BASE)
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if ("traceparent", "header") in {(one["name"], one["in"]) for one in operation["parameters"]}
    }
    assert taking == {"/events/emit", "/events/emit/batch"}
    for name in ("NewWebhook", "WebhookChanges", "Webhook", "CreatedWebhook"):
        schema = document["components"]["schemas"][name]["properties"]["propagate_trace_context"]
        assert schema["type"] == "boolean"
        assert "traceparent" in schema["description"]
