"""The API's document, OpenAPI 3.1, made of the routes: their structs by msgspec, their problems, and what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

import msgspec

from api.errors import MEDIA_TYPE, TITLES, ProblemDocument
from api.examples import example_of
from api.fields import ATTEMPT_ID, EVENT_ID, EVENT_TYPE, LINK_ID, RECOVERY_ID, SUBSCRIPTION_ID
from api.operation import Route, every_problem

Json = dict[str, object]

VERSION: Final = "1.0.0"
"""Of what the API promises, not of the program. The second number rises with every addition."""

_REFERENCE: Final = "#/components/schemas/{name}"
_PATH_PATTERNS: Final = {
    "subscription_id": SUBSCRIPTION_ID,
    "attempt_id": ATTEMPT_ID,
    "event_id": EVENT_ID,
    "recovery_id": RECOVERY_ID,
    "event_type": EVENT_TYPE,
    "link_id": LINK_ID,
}
_TRACEPARENT: Final[Json] = {
    "name": "traceparent",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "W3C Trace Context: what the events belong to. A malformed one is ignored.",
    "example": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}
_KEY: Final = {"type": "http", "scheme": "bearer", "bearerFormat": "dlx_ and 43 url-safe characters"}
_PARAMETER: Final = re.compile(r"<([a-z_]+)>")

DESCRIPTION: Final = """\
Outbound webhooks: customers subscribe endpoints to event types, emitters emit events, and each event is sent, signed,
to every endpoint that wants it, until it is accepted or its retries are used up.

Keys go into `Authorization: Bearer dlx_…`. A *customer* key acts for its one customer: `customer_id` may be left out.
An *ops* key acts for all of them and has to name one where a route says so. Times are UTC. Errors are RFC 9457 problem
documents: look at `code`. Lists are walked by `next_cursor` until it is null; a page may be shorter than `limit` before
that. Parameters and fields that a route does not know are refused.
"""
_TAGS: Final = (
    ("webhooks", "Subscriptions: endpoints, what they want, their secrets."),
    ("event-types", "The catalogue: what can be subscribed to and emitted."),
    ("events", "What happened, and how far it was brought."),
    ("deliveries", "The log: every attempt that was made."),
    ("recoveries", "Bulk replays: events of a time that one endpoint is sent once more."),
    ("stats", "Figures over days."),
    ("portal-links", "Links that let a customer's people into the portal."),
    ("service", "The service itself."),
)
_PROBLEM_CODES: Final = {
    400: "malformed_json", 401: "unauthorized", 403: "wrong_customer", 404: "not_found", 408: "request_timeout",
    409: "subscription_disabled", 410: "subscription_gone", 413: "body_too_large", 415: "unsupported_media_type",
    422: "invalid", 429: "rate_limited", 503: "database_unavailable",
}  # fmt: skip
"""One for each status, for the examples: there are more."""
_PROBLEM_WORDS: Final = {
    400: "The body is no JSON, or a value breaks a rule that stands in the description.",
    401: "No key, or none that is valid.",
    403: "The key may not do this: another customer's `customer_id`, or a route for ops keys only.",
    404: "There is no such object, or it is another customer's.",
    408: "The body did not come in time.",
    409: "It does not fit the present state.",
    410: "It was there and is no longer.",
    413: "The body or a payload is too large.",
    415: "The body is not plain `application/json`.",
    422: "A value is missing, unknown, or not as the schema wants it.",
    429: "Too much of it, above all without a valid key; see `Retry-After`.",
    503: "The database does not answer; see `Retry-After`.",
}


def document(routes: Sequence[Route]) -> bytes:
    """The document as JSON."""
    models = {model for chosen in routes for model in _models(chosen)} | {ProblemDocument}
    _, components = msgspec.json.schema_components(
        sorted(models, key=lambda model: model.__name__), ref_template=_REFERENCE
    )
    paths: dict[str, Json] = {}
    for chosen in routes:
        path = _PARAMETER.sub(r"{\1}", chosen.path)
        paths.setdefault(path, {})[chosen.method.lower()] = _operation(chosen, components)
    whole: Json = {
        "openapi": "3.1.0",
        "info": {"title": "Dealix Webhooks", "version": VERSION, "description": DESCRIPTION},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": _KEY}},
        "tags": [{"name": name, "description": words} for name, words in _TAGS],
    }
    return msgspec.json.encode(_portable(whole))


def _models(chosen: Route) -> Iterator[type[msgspec.Struct]]:
    yield chosen.query
    yield chosen.body
    yield from chosen.answers.values()


def _operation(chosen: Route, components: Mapping[str, object]) -> Json:
    summary, _, description = chosen.doc.partition("\n")
    headers = [_TRACEPARENT] if chosen.takes_traceparent else []
    made: Json = {
        "operationId": chosen.name,
        "summary": summary.strip().rstrip("."),
        "description": re.sub(r"\n +", "\n", description).strip(),
        "tags": [_tag_of(chosen)],
        "security": [] if chosen.who == "anyone" else [{"key": []}],
        "parameters": [*_path_parameters(chosen), *_query_parameters(chosen, components), *headers],
    }
    if chosen.takes_body:
        made["requestBody"] = {
            "content": {"application/json": _with_example(chosen.body, components)},
            "required": not chosen.body_optional,
        }
    responses: Json = {
        str(status): {
            "description": _first_line(model),
            "content": {chosen.media_type: _with_example(model, components)},
        }
        for status, model in chosen.answers.items()
    }
    made["responses"] = responses | {str(status): _problem(status) for status in every_problem(chosen)}
    return made


def _tag_of(chosen: Route) -> str:
    return next((name for name, _ in _TAGS if f"/{name}" in chosen.path), "service")


def _path_parameters(chosen: Route) -> Iterator[Json]:
    for name in cast("list[str]", _PARAMETER.findall(chosen.path)):
        schema = {"type": "string", "pattern": _PATH_PATTERNS[name]}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(chosen: Route, components: Mapping[str, object]) -> Iterator[Json]:
    schema = cast("Json", components[chosen.query.__name__])
    required = cast("list[str]", schema.get("required", []))
    for name, value in cast("dict[str, Json]", schema.get("properties", {})).items():
        inner = {key: part for key, part in value.items() if key != "description"}
        made: Json = {"name": name, "in": "query", "required": name in required, "schema": inner}
        if "description" in value:
            made["description"] = value["description"]
        yield made


def _problem(status: int) -> Json:
    made: Json = {
        "description": _PROBLEM_WORDS.get(status, TITLES[status]),
        "content": {MEDIA_TYPE: {"schema": _reference(ProblemDocument), "example": _problem_example(status)}},
    }
    if status == 401:
        made["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    if status == 503:
        made["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}}
    return made


def _problem_example(status: int) -> Json:
    code = _PROBLEM_CODES.get(status, "refused")
    made: Json = {
        "type": f"urn:dealix:problem:{code}",
        "title": TITLES[status],
        "status": status,
        "detail": _PROBLEM_WORDS.get(status, TITLES[status]),
        "code": code,
    }
    if status == 422:
        made |= {"detail": "limit: is missing", "errors": [{"field": "limit", "message": "is missing"}]}
    return made


def _with_example(model: type[msgspec.Struct], components: Mapping[str, object]) -> Json:
    schema = _reference(model)
    return {"schema": schema, "example": example_of(schema, components)}


def _reference(model: type[msgspec.Struct]) -> Json:
    return {"$ref": _REFERENCE.format(name=model.__name__)}


def _first_line(model: type[msgspec.Struct]) -> str:
    return (model.__doc__ or model.__name__).strip().partition("\n")[0]


def _portable(value: object, key: str = "") -> object:
    r"""The same with patterns as ECMAScript writes them: it has no `\Z`, and its `$` means just that."""
    if isinstance(value, dict):
        return {name: _portable(inner, name) for name, inner in cast("dict[str, object]", value).items()}
    if isinstance(value, list):
        return [_portable(inner, key) for inner in cast("list[object]", value)]
    if key == "pattern" and isinstance(value, str):
        return value.replace(r"\Z", "$")
    return value
