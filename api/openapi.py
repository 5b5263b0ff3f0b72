"""The API's document, OpenAPI 3.1: made by quart-schema from the routes, completed with what it leaves out.

quart-schema keeps only the first component of a msgspec schema, knows no problems, and marks no body as required.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, cast

import msgspec
from quart import Quart
from quart_schema import QuartSchema
from quart_schema.openapi import HttpSecurityScheme, Info, OpenAPIProvider, Tag
from typing_extensions import override
from werkzeug.routing import BaseConverter, Rule

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


def document(app: Quart, routes: list[Route]) -> bytes:
    """The document as JSON. Every route has to be registered with `app` by its name."""
    extension = QuartSchema(
        app,
        openapi_path=None,  # served by a route of our own, from memory; so no page with scripts of others either
        info=Info(title="Dealix Webhooks", version=VERSION, description=DESCRIPTION),
        tags=[Tag(name, description=words) for name, words in _TAGS],
        security_schemes={
            "key": HttpSecurityScheme(scheme="bearer", bearer_format="dlx_ and 43 url-safe characters"),
        },
        conversion_preference="msgspec",
        openapi_provider_class=_provider_of(routes),
    )
    return msgspec.json.encode(_portable(extension.openapi_provider.schema()))


def _provider_of(routes: list[Route]) -> type[OpenAPIProvider]:
    by_name = {chosen.name: chosen for chosen in routes}
    models = {model for chosen in routes for model in _models(chosen)} | {ProblemDocument}
    references, components = msgspec.json.schema_components(
        sorted(models, key=lambda model: model.__name__), ref_template=_REFERENCE
    )
    del references

    class Provider(OpenAPIProvider):
        """Asked for one rule at a time."""

        @override
        def schema(self) -> Json:
            made = cast("Json", super().schema())
            cast("Json", made["components"])["schemas"] = components
            return made

        @override
        def generate_rules(self) -> Iterator[Rule]:
            return (rule for rule in super().generate_rules() if rule.endpoint in by_name)

        @override
        def build_path_parameter(self, name: str, converter: BaseConverter) -> Json:
            made = cast("Json", super().build_path_parameter(name, converter))
            made["schema"] = {"type": "string", "pattern": _PATH_PATTERNS[name]}
            return made

        @override
        def build_paths(self, rule: Rule) -> tuple[Json, Json]:
            build = cast("Callable[[Rule], tuple[dict[str, Json], Json]]", super().build_paths)
            paths, _ = build(rule)
            chosen = by_name[rule.endpoint]
            for operations in paths.values():
                for operation in cast("dict[str, Json]", operations).values():
                    _complete(operation, chosen, components)
            return cast("Json", paths), {}

    return Provider


def _models(chosen: Route) -> Iterator[type[msgspec.Struct]]:
    yield chosen.query
    yield chosen.body
    yield from chosen.answers.values()


def _complete(operation: Json, chosen: Route, components: Mapping[str, object]) -> None:
    summary, _, description = chosen.doc.partition("\n")
    operation["operationId"] = chosen.name
    operation["summary"] = summary.strip().rstrip(".")
    operation["description"] = re.sub(r"\n +", "\n", description).strip()
    operation["tags"] = [_tag_of(chosen)]
    operation["security"] = [] if chosen.who == "anyone" else [{"key": []}]
    parameters = cast("list[Json]", operation["parameters"])
    parameters.extend(_query_parameters(chosen, components))
    if chosen.takes_traceparent:
        parameters.append(_TRACEPARENT)
    if chosen.takes_body:
        operation["requestBody"] = {
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
    operation["responses"] = responses | {str(status): _problem(status) for status in every_problem(chosen)}


def _tag_of(chosen: Route) -> str:
    return next((name for name, _ in _TAGS if f"/{name}" in chosen.path), "service")


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
