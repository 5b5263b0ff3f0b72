"""The event catalogue: types that customers subscribe to and emitters emit, and the platform's own beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypedDict

from daemon.policy.operational import OPERATIONAL, TYPES
from daemon.store.connection import Connection


@dataclass(frozen=True, slots=True)
class EventType:
    """One type, as in `deal.won`, and what it says in a sentence.

    `example` (a payload) and `schema` (JSON Schema 2020-12) are JSON text. `enforced`: emits over HTTP have to fit the
    schema. `operational`: raised by the platform alone, for subscriptions that ask for it by name.
    """

    type: str
    description: str
    example: str | None = None
    schema: str | None = None
    enforced: bool = False
    deprecated_at: datetime | None = None
    operational: bool = False


class Details(TypedDict, total=False):
    """What may be changed of a type; a key that is not there leaves its column alone."""

    description: str
    example: str | None
    schema: str | None
    enforced: bool
    deprecated: bool


_PLATFORM: Final = [EventType(o.type, o.description, o.example, o.schema, operational=True) for o in OPERATIONAL]

_ALL: Final = """
SELECT t.type, t.description, d.example, d.schema, coalesce(d.enforced, false), d.deprecated_at
FROM dealix.event_types t
LEFT JOIN dealix.event_type_details d USING (type)
ORDER BY t.type
"""
_ONE: Final = """
SELECT t.type, t.description, d.example, d.schema, coalesce(d.enforced, false), d.deprecated_at
FROM dealix.event_types t
LEFT JOIN dealix.event_type_details d USING (type)
WHERE t.type = %(type)s
"""
# Locks the type's row: two changes at once do not judge each other's half. Emitters do not wait for it.
_LOCK: Final = """
SELECT type
FROM dealix.event_types
WHERE type = %(type)s
FOR NO KEY UPDATE
"""
_ENFORCED: Final = """
SELECT type, schema
FROM dealix.event_type_details
WHERE enforced
"""
_UNKNOWN: Final = """
SELECT given.type
FROM unnest(%(types)s::text[]) WITH ORDINALITY AS given (type, place)
WHERE NOT EXISTS (SELECT FROM dealix.event_types known WHERE known.type = given.type)
ORDER BY given.place
"""
_ADD: Final = """
INSERT INTO dealix.event_types (type, description)
VALUES (%(type)s, %(description)s)
ON CONFLICT (type) DO NOTHING
"""
_DESCRIBE: Final = """
UPDATE dealix.event_types
SET description = %(description)s
WHERE type = %(type)s
"""
# A type may have come by SQL, without this row. Not one statement with the next: a CHECK would judge the row to be
# inserted before the conflict.
_HAVE_DETAILS: Final = """
INSERT INTO dealix.event_type_details (type)
VALUES (%(type)s)
ON CONFLICT (type) DO NOTHING
"""
_DETAIL: Final = """
UPDATE dealix.event_type_details
SET example = CASE WHEN %(set_example)s::boolean THEN %(example)s::text ELSE example END,
    schema = CASE WHEN %(set_schema)s::boolean THEN %(schema)s::text ELSE schema END,
    enforced = coalesce(%(enforced)s::boolean, enforced),
    deprecated_at = CASE WHEN %(deprecated)s::boolean THEN coalesce(deprecated_at, clock_timestamp())
                         WHEN NOT %(deprecated)s::boolean THEN NULL
                         ELSE deprecated_at END
WHERE type = %(type)s
"""


async def all_types(conn: Connection) -> list[EventType]:
    """Every type, in the order of the alphabet, the platform's own last."""
    cursor = await conn.execute(_ALL)
    return [EventType(*row) for row in await cursor.fetchall()] + _PLATFORM


async def get(conn: Connection, event_type: str) -> EventType | None:
    """One type; None where there is none."""
    row = await (await conn.execute(_ONE, {"type": event_type})).fetchone()
    if row is None:
        return next((one for one in _PLATFORM if one.type == event_type), None)
    return EventType(*row)


async def enforced(conn: Connection) -> dict[str, str]:
    """The schemas, as JSON text, of those types whose emits over HTTP have to fit them."""
    return dict(await (await conn.execute(_ENFORCED)).fetchall())


async def unknown(conn: Connection, types: Iterable[str]) -> list[str]:
    """Those of `types` that nobody can subscribe to, in their order. None may contain NUL or a lone surrogate."""
    asked = [one for one in types if one not in TYPES]
    cursor = await conn.execute(_UNKNOWN, {"types": asked})
    return [row[0] for row in await cursor.fetchall()]


async def add(conn: Connection, event_type: str, description: str, details: Details) -> EventType | None:
    """A new type; None where it is there already. Emits of it work as soon as this commits."""
    async with conn.transaction():
        added = await conn.execute(_ADD, {"type": event_type, "description": description})
        if added.rowcount == 0:
            return None
        await _detail(conn, event_type, details)
        return await get(conn, event_type)


async def lock(conn: Connection, event_type: str) -> EventType | None:
    """A type as it stands, which nobody else changes until the caller's transaction ends.

    None where there is no such type, or it is the platform's own.
    """
    row = await (await conn.execute(_LOCK, {"type": event_type})).fetchone()
    return None if row is None else await get(conn, event_type)


async def change(conn: Connection, event_type: str, details: Details) -> EventType:
    """Change what `details` names of a type that the caller has locked."""
    if "description" in details:
        await conn.execute(_DESCRIBE, {"type": event_type, "description": details["description"]})
    await _detail(conn, event_type, details)
    changed = await get(conn, event_type)
    if changed is None:
        raise RuntimeError("the event type that was locked is not there")
    return changed


async def _detail(conn: Connection, event_type: str, details: Details) -> None:
    parameters = {
        "type": event_type,
        "example": details.get("example"),
        "set_example": "example" in details,
        "schema": details.get("schema"),
        "set_schema": "schema" in details,
        "enforced": details.get("enforced"),
        "deprecated": details.get("deprecated"),
    }
    await conn.execute(_HAVE_DETAILS, {"type": event_type})
    await conn.execute(_DETAIL, parameters)
