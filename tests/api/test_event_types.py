"""The event catalogue over HTTP: listed for all, kept by ops, enforced at emit where ops want it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import trio

from api.json_schema import Schema, SchemaInvalid
from daemon.policy.operational import OPERATIONAL
from tests.support.api import Served
from tests.support.receiver import open_receiver

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"ship": {"type": "string"}, "tons": {"type": "integer", "minimum": 1}},
    "required": ["ship"],
}
SUNK: dict[str, Any] = {"type": "ship.sunk", "description": "A ship sank."}


async def types(api: Served) -> dict[str, Any]:
    listed = (await api.client.get("/api/v1/ecosystem/event-types")).json()
    assert listed["count"] == len(listed["events"])
    return {one["type"]: one for one in listed["events"]}


async def test_each_of_the_types_comes_with_an_example_that_fits_its_schema(api: Served) -> None:
    listed = await types(api)
    assert len([one for one in listed.values() if not one["operational"]]) == 19
    assert {name for name, one in listed.items() if one["operational"]} == {one.type for one in OPERATIONAL}
    for name, one in listed.items():
        assert Schema(json.dumps(one["schema"])).fault(json.dumps(one["example"])) is None, name
        assert set(one["schema"]["required"]) <= set(one["example"]), name
        assert set(one["example"]) == set(one["schema"]["properties"]), name
        assert (one["enforced"], one["deprecated"]) == (False, False)


async def test_a_type_that_ops_add_can_be_subscribed_to_and_emitted_at_once(api: Served) -> None:
    added = await api.ops.post("/event-types", SUNK | {"example": {"ship": "Mary Rose"}, "schema": SCHEMA})
    assert added.status_code == 201, added.text
    assert added.json() == SUNK | {
        "example": {"ship": "Mary Rose"}, "schema": SCHEMA,
        "enforced": False, "deprecated": False, "operational": False,
    }  # fmt: skip
    assert (await types(api))["ship.sunk"] == added.json()
    await api.acme.subscribe(events=["ship.sunk"])
    emitted = await api.ops.post("/events/emit", {"customer_id": "acme", "event_type": "ship.sunk"})
    assert emitted.json()["matched"] == 1
    again = await api.ops.post("/event-types", SUNK)
    assert (again.status_code, again.json()["code"]) == (409, "event_type_exists")


async def test_a_type_is_described_deprecated_and_stripped_by_what_is_named_alone(api: Served) -> None:
    before = (await types(api))["deal.won"]
    for changes, expected in (
        ({"description": "Won."}, {"description": "Won."}),
        ({"deprecated": True}, {"deprecated": True}),
        ({"deprecated": True}, {}),
        ({"example": None}, {"example": None}),
        ({"deprecated": False, "schema": None}, {"deprecated": False, "schema": None}),
        ({}, {}),
    ):
        answer = await api.ops.patch("/event-types/deal.won", changes)
        before |= expected
        assert (answer.status_code, answer.json()) == (200, before), changes
    assert (await types(api))["deal.won"] == before
    await api.run("INSERT INTO dealix.event_types VALUES ('by.sql', 'It came by SQL.')")
    answer = await api.ops.patch("/event-types/by.sql", {"enforced": True, "schema": {}})
    assert (answer.status_code, answer.json()["enforced"]) == (200, True)


async def test_what_does_not_fit_together_is_refused_by_name(api: Served) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"type": "Ship.Sunk"}, "type"),
        ({"type": "ship"}, "type"),
        ({"type": "ship.sunk\n"}, "type"),
        ({"type": "endpoint.moved"}, "type"),
        ({"type": "delivery.lost"}, "type"),
        ({"description": ""}, "description"),
        ({"description": "a\x00b"}, "description"),
        ({"example": [1]}, "example"),
        ({"example": {"a": "\x00"}}, "example"),
        ({"enforced": True}, "enforced"),
        ({"schema": True}, "schema"),
        ({"schema": {"type": "objekt"}}, "schema"),
        ({"schema": {"$ref": "https://example.com/schema.json"}}, "schema"),
        ({"schema": {"$id": "https://example.com/schema.json"}}, "schema"),
        ({"schema": {"$ref": "#/$defs/none"}}, "schema"),
        ({"schema": {"pattern": "("}}, "schema"),
        ({"schema": {"$schema": "http://json-schema.org/draft-07/schema#"}}, "schema"),
        ({"schema": SCHEMA, "example": {"ship": 7}}, "example.ship"),
        ({"schema": SCHEMA, "example": {}}, "example"),
    ]
    for fields, field in bad:
        answer = await api.ops.post("/event-types", SUNK | fields)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), fields
    assert "ship.sunk" not in await types(api)
    for changes, field in (
        ({"example": {"deal_id": 7}}, "example.deal_id"),
        ({"schema": {"required": ["x"]}}, "example"),
        ({"schema": None, "enforced": True}, "enforced"),
    ):
        answer = await api.ops.patch("/event-types/deal.won", changes)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), changes
    for unknown in ("ship.sunk", "endpoint.failing", "%00", "x" * 400):
        assert (await api.ops.patch(f"/event-types/{unknown}", {"deprecated": True})).status_code == 404


async def test_only_ops_keep_the_catalogue(api: Served) -> None:
    assert (await api.acme.post("/event-types", SUNK)).status_code == 403
    assert (await api.acme.patch("/event-types/deal.won", {"deprecated": True})).status_code == 403


async def test_a_schema_that_is_enforced_holds_for_emits_over_http_and_not_in_sql(api: Served) -> None:
    await api.ops.post("/event-types", SUNK | {"schema": SCHEMA, "enforced": True})
    event = {"customer_id": "acme", "event_type": "ship.sunk"}
    good, bad = {"payload": {"ship": "Vasa", "tons": 1210}}, {"payload": {"ship": "Vasa", "tons": 0.5}}
    assert (await api.ops.post("/events/emit", event | good)).status_code == 202
    refused = await api.ops.post("/events/emit", event | bad)
    assert (refused.status_code, refused.json()["code"]) == (422, "payload_invalid")
    assert refused.json()["errors"] == [{"field": "payload.tons", "message": "0.5 is not of type 'integer'"}]
    assert (await api.ops.post("/events/emit", event)).json()["errors"][0]["field"] == "payload"
    batch = {"events": [{"customer_id": "acme", "event_type": "deal.won", "payload": {"any": 1}}, event | bad]}
    refused = await api.ops.post("/events/emit/batch", batch)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "events[1].payload.tons")
    assert len(await api.rows("SELECT 1 FROM dealix.events")) == 1
    await api.run("SELECT dealix.emit('acme', 'ship.sunk', '{\"ship\": 7}')")
    assert len(await api.rows("SELECT 1 FROM dealix.events")) == 2


async def test_a_change_of_what_is_enforced_takes_effect_within_a_second(api: Served) -> None:
    event = {"customer_id": "acme", "event_type": "deal.won", "payload": {"deal_id": 7}}
    assert (await api.ops.post("/events/emit", event)).status_code == 202
    await api.ops.patch("/event-types/deal.won", {"enforced": True})
    await trio.sleep(1.1)
    assert (await api.ops.post("/events/emit", event)).status_code == 422
    await api.ops.patch("/event-types/deal.won", {"schema": {"required": ["deal_id"]}, "example": {"deal_id": 1}})
    await trio.sleep(1.1)
    assert (await api.ops.post("/events/emit", event)).status_code == 202


async def test_a_large_payload_is_judged_without_holding_up_the_others(api: Served) -> None:
    items = {"type": "array", "items": {"type": "object", "required": ["a"], "properties": {"a": {"minimum": 0}}}}
    await api.ops.post("/event-types", SUNK | {"schema": {"properties": {"items": items}}, "enforced": True})
    payload = {"items": [{"a": n} for n in range(20_000)]}
    event = {"customer_id": "acme", "event_type": "ship.sunk", "payload": payload}
    longest = 0.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(api.ops.post, "/events/emit", event)
        for _ in range(40):
            began = time.monotonic()
            assert (await api.client.get("/healthz")).status_code == 200
            longest = max(longest, time.monotonic() - began)
    assert longest < 0.4
    assert len(await api.rows("SELECT 1 FROM dealix.events")) == 1


async def test_a_test_fire_sends_the_example_marked_as_a_test_and_offers_to_enable(working_api: Served) -> None:
    example = (await types(working_api))["deal.won"]["example"]
    async with open_receiver() as receiver:
        made = await working_api.acme.subscribe(receiver.url("/hook"))
        path = f"/webhooks/{made['id']}"
        enabled = await working_api.acme.post(f"{path}/test", {"event_type": "deal.won"})
        assert "enable" not in enabled.json()
        await working_api.acme.patch(path, {"enabled": False})
        fired = (await working_api.acme.post(f"{path}/test", {"event_type": "deal.won"})).json()
        body = json.loads((await receiver.wait_for(2))[1].body)
        assert body["data"] == {"test": True} | example
        offer = fired["enable"]
        assert (offer["method"], offer["body"]) == ("PATCH", {"enabled": True})
        taken = await working_api.acme.patch(offer["path"].removeprefix("/api/v1/ecosystem"), offer["body"])
        assert taken.json()["enabled"] is True
        await working_api.run("UPDATE dealix.event_type_details SET example = NULL WHERE type = 'deal.lost'")
        await working_api.acme.post(f"{path}/test", {"event_type": "deal.lost"})
        assert json.loads((await receiver.wait_for(3))[2].body)["data"]["test"] is True


@pytest.mark.parametrize("text", ["[]", "1", '"#"', "{", '{"properties": {"a": 1}}'])
def test_a_text_that_is_no_schema_says_so(text: str) -> None:
    with pytest.raises(SchemaInvalid):
        Schema(text)


def test_what_cannot_be_judged_does_not_fit() -> None:
    circle = Schema('{"properties": {"a": {"$ref": "#/properties/a"}}}')
    assert circle.fault("{}") is None
    for payload in ('{"a": 1}', '{"b": ' + "9" * 5000 + "}"):
        assert circle.fault(payload) is not None
    assert Schema('{"properties": {"a": {"items": {"minimum": 1}}}}').fault('{"a": [1, 0]}') is not None
