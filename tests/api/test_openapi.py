"""The API's document: what programs and people are told."""

from __future__ import annotations

import json
import re
from typing import Any

from jsonschema_rs import Draft202012Validator

from api.app import all_routes
from api.operation import every_problem
from tests.support.api import BASE, Served
from tests.support.document import operations_of

CONTRACT = {
    ("GET", "/event-types"), ("POST", "/webhooks"), ("GET", "/webhooks"), ("GET", "/webhooks/{subscription_id}"),
    ("PATCH", "/webhooks/{subscription_id}"), ("DELETE", "/webhooks/{subscription_id}"),
    ("POST", "/webhooks/{subscription_id}/test"), ("POST", "/webhooks/{subscription_id}/rotate-secret"),
    ("POST", "/events/emit"), ("POST", "/events/emit/batch"), ("GET", "/events/{event_id}"), ("GET", "/deliveries"),
    ("GET", "/deliveries/{attempt_id}"), ("POST", "/deliveries/{attempt_id}/retry"), ("GET", "/stats"),
    ("POST", "/webhooks/{subscription_id}/recover"), ("GET", "/recoveries"), ("GET", "/recoveries/{recovery_id}"),
    ("POST", "/recoveries/{recovery_id}/cancel"), ("POST", "/event-types"), ("PATCH", "/event-types/{event_type}"),
    ("POST", "/portal-links"), ("DELETE", "/portal-links/{link_id}"), ("GET", "/events/stream"),
}  # fmt: skip


async def test_every_route_of_the_contract_is_served_and_described(api: Served) -> None:
    described = {(one.method, one.path) for one in await operations_of(api)}
    assert described == {(method, BASE + path) for method, path in CONTRACT} | {("GET", "/healthz"), ("GET", "/readyz")}
    served = {(one.method, one.path.replace("<", "{").replace(">", "}")) for one in all_routes(api.services)}
    assert served == described


async def test_each_operation_names_itself_its_key_and_every_way_to_fail(api: Served) -> None:
    routes = {one.name: one for one in all_routes(api.services)}
    for operation in await operations_of(api):
        spec, chosen = operation.spec, routes[operation.name]
        assert len(spec["summary"]) > 10, operation.name
        assert spec["tags"], operation.name
        assert spec["security"] == ([] if chosen.who == "anyone" else [{"key": []}])
        assert operation.statuses == {*chosen.answers, *every_problem(chosen)}
        if chosen.who != "anyone":
            assert {401, 422, 503} <= operation.statuses
        if operation.body_schema:
            assert {400, 408, 413, 415, 422} <= operation.statuses
        for status, response in spec["responses"].items():
            kind = chosen.media_type if int(status) < 400 else "application/problem+json"
            assert list(response["content"]) == [kind]
            assert response["description"]


def references(value: dict[str, Any] | list[Any] | str | float | None) -> list[str]:
    """Every `$ref` below a value."""
    if isinstance(value, dict):
        return [
            *([value["$ref"]] if "$ref" in value else []),
            *(one for inner in value.values() for one in references(inner)),
        ]
    return [one for inner in value for one in references(inner)] if isinstance(value, list) else []


async def test_the_schemas_are_valid_complete_and_without_pythons_patterns(api: Served) -> None:
    document = (await api.client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        Draft202012Validator({**schema, "components": {"schemas": schemas}})
        assert schema.get("description"), name
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    assert r"\Z" not in json.dumps(document)
    assert r"\\Z" not in json.dumps(document)
    for name in ("NewWebhook", "WebhookChanges", "EventToEmit", "Batch", "Rotation", "TestRequest", "NewPortalLink"):
        assert schemas[name]["additionalProperties"] is False
    assert schemas["NewWebhook"]["required"] == ["endpoint_url"]
    assert schemas["EventToEmit"]["properties"]["payload"]["type"] == "object"
    assert schemas["EventToEmit"]["properties"]["customer_id"]["pattern"] == "^[A-Za-z0-9_.:-]{1,64}$"


async def test_there_is_no_page_that_loads_scripts_of_others(api: Served) -> None:
    for path in ("/docs", "/redocs", "/scalar", "/openapi.json"):
        answer = await api.client.get(path)
        assert all(tag.startswith('<script src="/portal/assets/') for tag in re.findall("<script[^>]*", answer.text))
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"


async def test_answers_are_as_the_document_says(api: Served) -> None:
    document = (await api.client.get("/openapi.json")).json()
    made = await api.acme.subscribe()
    event_id = (await api.ops.post("/events/emit", {"customer_id": "acme", "event_type": "deal.won"})).json()[
        "event_id"
    ]
    for path, name in (
        ("/event-types", "EventTypeList"),
        ("/webhooks", "WebhookList"),
        (f"/webhooks/{made['id']}", "Webhook"),
        (f"/events/{event_id}", "EventShown"),
        ("/deliveries", "DeliveryList"),
        ("/stats", "Stats"),
        ("/webhooks/nothing", "ProblemDocument"),
    ):
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        Draft202012Validator(schema).validate((await api.acme.get(path)).json())
    types = (await api.client.get(f"{BASE}/event-types")).json()
    assert set(types) == {"count", "events", "signature_format", "headers_emitted", "verification_doc"}
    assert types["count"] == len(types["events"]) >= 19
    first = types["events"][0]
    assert (first["type"], first["description"]) == ("company.created", "A company was added to the account.")
