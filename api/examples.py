"""A plausible value for each schema of the API's document: what requests and answers look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

Json = dict[str, object]

_DEPTH: Final = 6
_AT: Final = "2026-01-31T08:00:00.000Z"
_SECRET: Final = "whsec_" + "EXAMPLE" * 6 + "EX"

BY_NAME: Final[Mapping[str, object]] = {
    "attempt": 1,
    "attempts": 1,
    "api_version": "v1",
    "body": '{"api_version":"v1","customer_id":"acme","data":{"deal_id":7},"id":"evt_019b90a1c200a1b2c3d4e5f6",…}',
    "circuit": "closed",
    "code": "invalid",
    "consecutive_failures": 0,
    "count": 1,
    "created_at": _AT,
    "customer_id": "acme",
    "cursor": "Zm9vYmFy",
    "data": {"deal_id": 7, "amount": 125000.5, "currency": "EUR"},
    "deleted": True,
    "delivered": 1,
    "description": "Production CRM sync",
    "detail": "endpoint_url: is missing",
    "disabled_reason": None,
    "done": 1,
    "duration_ms": 42,
    "ended_at": _AT,
    "endpoint_url": "https://hooks.example.com/dealix",
    "error": None,
    "event_id": "evt_019b90a1c200a1b2c3d4e5f6",
    "event_type": "deal.won",
    "failed": 0,
    "field": "endpoint_url",
    "held_by": None,
    "last_attempt_id": "dlv_019b90a1c2640a1b2c3d4e5f",
    "last_error": None,
    "last_status_code": 200,
    "matched": 1,
    "message": "is missing",
    "next_attempt_at": None,
    "next_cursor": None,
    "payload": {"deal_id": 7, "amount": 125000.5, "currency": "EUR"},
    "pending": 0,
    "previous_secret_expires_at": _AT,
    "queued": 1,
    "secret": _SECRET,
    "shards": 64,
    "since": "2026-01-30T08:00:00Z",
    "status_code": 200,
    "subscription_id": "whk_0a1b2c3d4e5f60718293a4b5",
    "success": True,
    "success_rate": 0.9973,
    "test_event": "evt_019b90a1c200a1b2c3d4e5f6",
    "title": "Invalid value",
    "total": 1,
    "type": "deal.won",
    "until": "2026-01-31T08:00:00Z",
    "updated_at": _AT,
    "url": "https://hooks.example.com/dealix",
}
"""What a field of this name usually holds; used where its schema allows it."""

_IDS: Final[Mapping[str, str]] = {
    "Webhook": "whk_0a1b2c3d4e5f60718293a4b5",
    "CreatedWebhook": "whk_0a1b2c3d4e5f60718293a4b5",
    "DeletedWebhook": "whk_0a1b2c3d4e5f60718293a4b5",
    "RotatedSecret": "whk_0a1b2c3d4e5f60718293a4b5",
    "Delivery": "dlv_019b90a1c2640a1b2c3d4e5f",
    "DeliveryShown": "dlv_019b90a1c2640a1b2c3d4e5f",
    "EventShown": "evt_019b90a1c200a1b2c3d4e5f6",
    "PortalLink": "plk_0a1b2c3d4e5f60718293a4b5",
    "RevokedPortalLink": "plk_0a1b2c3d4e5f60718293a4b5",
    "RecoveryShown": "rec_019b90a1c2640a1b2c3d4e5f",
}
"""What `id` is, by the schema that has it."""


def example_of(schema: Json, components: Mapping[str, object], *, name: str = "", depth: int = 0) -> object:
    """A value that fits `schema`. `components` are the document's schemas, `name` that of the field it is for."""
    owner, schema = _resolved(schema, components)
    for key in ("example", "const", "default"):
        if key in schema and schema[key] not in (None, [], False):
            return schema[key]
    if cast("list[object]", schema.get("examples", [])):
        return cast("list[object]", schema["examples"])[0]
    if "enum" in schema:
        named = BY_NAME.get(name)
        values = cast("list[object]", schema["enum"])
        return named if named in values else values[0]
    if name in BY_NAME and _takes(schema, BY_NAME[name]):
        return BY_NAME[name]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return example_of(cast("list[Json]", schema[key])[0], components, name=name, depth=depth)
    return _by_type(owner, schema, components, name, depth)


def _by_type(owner: str, schema: Json, components: Mapping[str, object], name: str, depth: int) -> object:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = cast("list[str]", kind)[0]
    if kind == "object":
        return _object(owner, schema, components, depth)
    if kind == "array":
        if name == "headers":
            return [["Content-Type", "application/json"]]
        items = cast("Json", schema.get("items", {}))
        return [example_of(items, components, name=name.removesuffix("s"), depth=depth + 1)]
    text = _AT if schema.get("format") == "date-time" else "…"
    plain = {"integer": schema.get("minimum", 1), "number": schema.get("minimum", 1), "boolean": True, "null": None}
    return plain.get(str(kind), text)


def _object(owner: str, schema: Json, components: Mapping[str, object], depth: int) -> Json:
    if depth > _DEPTH:
        return {}
    found: Json = {}
    for name, inner in cast("dict[str, Json]", schema.get("properties", {})).items():
        if name == "id" and owner in _IDS:
            found[name] = _IDS[owner]
        elif name == "errors" and owner == "ProblemDocument":
            found[name] = [{"field": "endpoint_url", "message": "is missing"}]
        else:
            found[name] = example_of(inner, components, name=name, depth=depth + 1)
    more = schema.get("additionalProperties")
    if not found and isinstance(more, dict):
        found["deal.won"] = example_of(cast("Json", more), components, depth=depth + 1)
    return found


def _resolved(schema: Json, components: Mapping[str, object]) -> tuple[str, Json]:
    """The schema that a `$ref` leads to, and its name."""
    owner = ""
    while "$ref" in schema:
        owner = str(schema["$ref"]).rpartition("/")[2]
        schema = cast("Json", components[owner])
    return owner, schema


def _takes(schema: Json, value: object) -> bool:
    """Whether a value is of one of the types that a schema allows at its own level."""
    kinds: set[object] = set()
    for one in (schema, *cast("list[Json]", schema.get("anyOf", []))):
        kind = one.get("type")
        kinds |= set(cast("list[object]", kind)) if isinstance(kind, list) else {kind}
    if "null" in kinds and value is None:
        return True
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, int):
        return bool(kinds & {"integer", "number"})
    wanted = "string" if isinstance(value, str) else "number" if isinstance(value, float) else "object"
    return wanted in kinds
