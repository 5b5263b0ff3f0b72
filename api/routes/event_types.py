"""/event-types: what can be subscribed to and how to verify what comes; and, for ops, keeping the catalogue."""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.bodies import check_payload
from api.errors import Problem, invalid, not_found
from api.fields import EVENT_TYPE, PRINTABLE
from api.operation import Answer, Call, NoBody, NoQuery, Route, route
from api.services import FIRST_S, WORK_S, Services
from api.verification import HEADERS_EMITTED, SIGNATURE_FORMAT, verification_doc
from daemon.log import get
from daemon.policy.operational import RESERVED
from daemon.store import event_types
from daemon.store.event_types import Details, EventType

log = get("catalogue")

NEW_TYPE: Final = r"^[a-z0-9_]{1,60}(\.[a-z0-9_]{1,60}){1,2}\Z"

_TYPE: Final = re.compile(EVENT_TYPE)

TypeName = Annotated[
    str, Meta(pattern=NEW_TYPE, description="As `noun.past_tense`: a–z 0–9 _ and full stops.", examples=["deal.won"])
]
Sentence = Annotated[str, Meta(min_length=1, max_length=500, pattern=PRINTABLE, description="What it says.")]
Example = Annotated[
    msgspec.Raw,
    Meta(
        description="A payload as it would come. Has to fit the schema; test-fires send it.",
        extra_json_schema={"type": ["object", "null"]},
    ),
]
SchemaText = Annotated[
    msgspec.Raw,
    Meta(
        description="JSON Schema 2020-12 of the payload, without references to other documents. `format` is a note.",
        extra_json_schema={"type": ["object", "null"]},
    ),
]
Enforced = Annotated[
    bool, Meta(description="Emits over HTTP have to fit the schema, else they are 422. Emits in SQL are not checked.")
]


class EventTypeShown(msgspec.Struct, frozen=True):
    """One event type. `operational`: about the customer's own endpoints, sent only where it is asked for by name."""

    type: str
    description: str
    example: Example | None
    schema: SchemaText | None
    enforced: Enforced
    deprecated: Annotated[bool, Meta(description="Still works; do not begin to rely on it.")]
    operational: bool


class EventTypeList(msgspec.Struct, frozen=True):
    """Every event type, and what receivers need to know."""

    count: int
    events: list[EventTypeShown]
    signature_format: str
    headers_emitted: list[str]
    verification_doc: str


class NewEventType(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A type to be added."""

    type: TypeName
    description: Sentence
    example: Example | UnsetType = UNSET
    schema: SchemaText | UnsetType = UNSET
    enforced: Enforced = False


class EventTypeChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be different; what is left out stays. null takes example or schema away."""

    description: Sentence | UnsetType = UNSET
    example: Example | UnsetType = UNSET
    schema: SchemaText | UnsetType = UNSET
    enforced: Enforced | UnsetType = UNSET
    deprecated: bool | UnsetType = UNSET


class EventTypes:
    """The handlers."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list_event_types(self, _: Call[NoQuery, NoBody]) -> Answer:
        """List the event types.

        Needs no key. Also tells which headers a webhook carries and how to verify its signature.
        """
        async with self._services.pool.connection(FIRST_S) as conn:
            known = await event_types.all_types(conn)
        return Answer(
            200,
            EventTypeList(
                count=len(known),
                events=[_shown(one) for one in known],
                signature_format=SIGNATURE_FORMAT,
                headers_emitted=HEADERS_EMITTED,
                verification_doc=verification_doc(),
            ),
        )

    async def add_event_type(self, call: Call[NoQuery, NewEventType]) -> Answer:
        """Add an event type.

        It can be subscribed to and emitted at once. 409 where it is there already. Types are never removed: deprecate
        one that nobody shall begin to use.
        """
        body = call.body
        if body.type.startswith(RESERVED):
            raise invalid("type", "begins as the platform's own types do")
        details = _details(body.example, body.schema)
        details["enforced"] = body.enforced
        _check(EventType(body.type, body.description), details)
        async with self._services.pool.connection(WORK_S) as conn:
            added = await event_types.add(conn, body.type, body.description, details)
        if added is None:
            raise Problem(409, "event_type_exists", f"There is an event type {body.type} already.")
        log.info("event_type.added", event_type=added.type, enforced=added.enforced, key_id=call.caller.key_id)
        return Answer(201, _shown(added))

    async def change_event_type(self, call: Call[NoQuery, EventTypeChanges]) -> Answer:
        """Describe, deprecate, or change an event type.

        A schema that is enforced holds for emits over HTTP within a second, on every daemon; events that were emitted
        before stay as they are. 404 for the platform's own types, too.
        """
        name, body = call.path["event_type"], call.body
        if not _TYPE.fullmatch(name):
            raise not_found("event type")
        details = _details(body.example, body.schema)
        if body.description is not UNSET:
            details["description"] = body.description
        if body.enforced is not UNSET:
            details["enforced"] = body.enforced
        if body.deprecated is not UNSET:
            details["deprecated"] = body.deprecated
        async with self._services.pool.connection(WORK_S) as conn, conn.transaction():
            present = await event_types.lock(conn, name)
            if present is None:
                raise not_found("event type")
            _check(present, details)
            changed = await event_types.change(conn, name, details)
        log.info("event_type.changed", event_type=name, changed=sorted(details), key_id=call.caller.key_id)
        return Answer(200, _shown(changed))


def routes(services: Services) -> list[Route]:
    """The routes of this noun."""
    it = EventTypes(services)
    return [
        route("GET", "/event-types", it.list_event_types, who="anyone", answers={200: EventTypeList}, problems=(503,)),
        route(
            "POST",
            "/event-types",
            it.add_event_type,
            who="ops",
            body=NewEventType,
            answers={201: EventTypeShown},
            problems=(409,),
        ),
        route(
            "PATCH",
            "/event-types/<event_type>",
            it.change_event_type,
            who="ops",
            body=EventTypeChanges,
            answers={200: EventTypeShown},
            problems=(404,),
        ),
    ]


def _details(example: msgspec.Raw | UnsetType, schema: msgspec.Raw | UnsetType) -> Details:
    """Example and schema as text, where they are given. Raises Problem 413 and 422."""
    details: Details = {}
    if example is not UNSET:
        details["example"] = None if bytes(example) == b"null" else check_payload(example, "example")
    if schema is not UNSET:
        details["schema"] = None if bytes(schema) == b"null" else check_payload(schema, "schema")
    return details


def _check(present: EventType, details: Details) -> None:
    """Whether the type will be sound with these details. Raises Problem 422."""
    example = details.get("example", present.example)
    schema = details.get("schema", present.schema)
    if schema is None:
        if details.get("enforced", present.enforced):
            raise invalid("enforced", "needs a schema")
        return
    from api.json_schema import Schema, SchemaInvalid  # noqa: PLC0415 see there

    try:
        fault = Schema(schema).fault(example or "{}")
    except SchemaInvalid as e:
        raise invalid("schema", str(e)) from e
    if fault is not None and example is not None:
        raise invalid(f"example.{fault.field}".rstrip("."), f"does not fit the schema: {fault.message}")


def _shown(one: EventType) -> EventTypeShown:
    return EventTypeShown(
        type=one.type,
        description=one.description,
        example=None if one.example is None else msgspec.Raw(one.example),
        schema=None if one.schema is None else msgspec.Raw(one.schema),
        enforced=one.enforced,
        deprecated=one.deprecated_at is not None,
        operational=one.operational,
    )
