"""/docs: the API's document, set out for people to read. Made once, on this side: the page needs no script."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, cast

import msgspec
from markupsafe import Markup, escape
from quart import Response

from api.examples import example_of
from api.portal.frame import Frame
from api.portal.visit import Visit

Json = dict[str, object]

_DEPTH: Final = 4
_CODE: Final = re.compile(r"`([^`]+)`")
_EMPHASIS: Final = re.compile(r"\*([^*]+)\*")
_PLACES: Final = {"path": " in the path", "header": " as a header"}


@dataclass(frozen=True, slots=True)
class Field:
    """One value of a body or query. `name` is a path, as in `deliveries[].id`."""

    name: str
    kind: str
    required: bool
    words: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation may answer with."""

    status: str
    words: str
    fields: list[Field]
    example: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, ready to be shown."""

    name: str
    method: str
    path: str
    summary: str
    words: str
    needs_key: bool
    parameters: list[Field]
    body: list[Field]
    request: str
    answers: list[Answer]


@dataclass(frozen=True, slots=True)
class Group:
    """The operations of one tag."""

    tag: str
    words: str
    operations: list[Operation]


class Reference:
    """The document, read once."""

    def __init__(self, document: bytes) -> None:
        decoded = msgspec.json.decode(document, type=dict[str, object])
        self.info = cast("dict[str, str]", decoded["info"])
        components = cast("dict[str, Json]", decoded["components"])
        self._schemas: Mapping[str, object] = components["schemas"]
        operations = [
            (cast("list[str]", spec["tags"])[0], self._operation(path, method, spec))
            for path, methods in cast("dict[str, dict[str, Json]]", decoded["paths"]).items()
            for method, spec in methods.items()
        ]
        self.groups = [
            Group(tag["name"], tag["description"], [one for name, one in operations if name == tag["name"]])
            for tag in cast("list[dict[str, str]]", decoded["tags"])
        ]

    def _operation(self, path: str, method: str, spec: Json) -> Operation:
        body = cast("Json | None", spec.get("requestBody"))
        schema = _schema_of(cast("Json", body["content"])) if body else None
        parameters = cast("list[Json]", spec.get("parameters", []))
        needs_key = bool(spec.get("security"))
        sent = None if schema is None else example_of(schema, self._schemas)
        return Operation(
            name=str(spec["operationId"]),
            method=method.upper(),
            path=path,
            summary=str(spec["summary"]),
            words=str(spec.get("description", "")),
            needs_key=needs_key,
            parameters=[
                Field(
                    str(one["name"]),
                    _kind(cast("Json", one["schema"]), self._schemas) + _PLACES.get(str(one["in"]), ""),
                    bool(one.get("required")),
                    str(one.get("description", "")),
                )
                for one in parameters
            ],
            body=[] if schema is None else list(self._fields(schema, "", 0)),
            request=_curl(method.upper(), path, sent, needs_key=needs_key),
            answers=[self._answer(*item) for item in cast("dict[str, Json]", spec["responses"]).items()],
        )

    def _answer(self, status: str, response: Json) -> Answer:
        schema = _schema_of(cast("Json", response.get("content", {})))
        is_problem = not status.startswith("2")
        return Answer(
            status,
            str(response.get("description", "")),
            [] if schema is None or is_problem else list(self._fields(schema, "", 0)),
            "" if schema is None or is_problem else _pretty(example_of(schema, self._schemas)),
        )

    def _fields(self, schema: Json, prefix: str, depth: int) -> Iterator[Field]:
        resolved = _resolve(schema, self._schemas)
        required = cast("list[str]", resolved.get("required", []))
        for name, inner in cast("dict[str, Json]", resolved.get("properties", {})).items():
            path = f"{prefix}{name}"
            yield Field(path, _kind(inner, self._schemas), name in required, str(inner.get("description", "")))
            if depth < _DEPTH:
                yield from self._inner(inner, path, depth)

    def _inner(self, schema: Json, path: str, depth: int) -> Iterator[Field]:
        for one in (schema, *cast("list[Json]", schema.get("anyOf", []))):
            if "$ref" in one:
                yield from self._fields(one, f"{path}.", depth + 1)
            elif one.get("type") == "array" and "$ref" in cast("Json", one.get("items", {})):
                yield from self._fields(cast("Json", one["items"]), f"{path}[].", depth + 1)
            elif isinstance(one.get("additionalProperties"), dict):
                yield from self._fields(cast("Json", one["additionalProperties"]), f"{path}.*.", depth + 1)


def marked(text: str) -> Markup:
    """The document's own little markup, `code` and *stress*, as HTML; everything else stays text."""
    made = _EMPHASIS.sub(r"<em>\1</em>", _CODE.sub(r"<code>\1</code>", str(escape(text))))
    return Markup(made)  # noqa: S704 - escaped above; the document is our own besides


def _resolve(schema: Json, schemas: Mapping[str, object]) -> Json:
    while "$ref" in schema:
        schema = cast("Json", schemas[str(schema["$ref"]).rpartition("/")[2]])
    return schema


def _kind(schema: Json, schemas: Mapping[str, object]) -> str:
    """A schema's type in a few words, as in `list of text`."""
    schema = _resolve(schema, schemas)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_kind(one, schemas) for one in cast("list[Json]", schema[key])))
    if "enum" in schema:
        return " | ".join(str(value) for value in cast("list[object]", schema["enum"]))
    kind = str(schema.get("type", "any JSON"))
    if kind == "array":
        return f"list of {_kind(cast('Json', schema.get('items', {})), schemas)}"
    return {"string": str(schema.get("format", "text")), "boolean": "true or false"}.get(kind, kind)


def _schema_of(content: Json) -> Json | None:
    first = next(iter(cast("dict[str, Json]", content).values()), None)
    return None if first is None else cast("Json", first["schema"])


def _pretty(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _curl(method: str, path: str, body: object, *, needs_key: bool) -> str:
    parts = ["curl -sS" if method == "GET" else f"curl -sS -X {method}", f"$DEALIX{path}"]
    if needs_key:
        parts.append('-H "Authorization: Bearer $KEY"')
    if body is not None:
        parts += ["-H 'Content-Type: application/json'", f"-d '{_pretty(body)}'"]
    return " \\\n  ".join(parts)


def install(frame: Frame, document: bytes) -> None:
    """Its address."""
    reference = Reference(document)

    async def docs(visitor: Visit) -> Response:
        return frame.page(visitor, "docs.html", info=reference.info, groups=reference.groups, marked=marked)

    frame.show("/docs", docs, open_to_anyone=True)
