"""The event types that customers may subscribe to and emitters may emit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from daemon.store.connection import Connection


@dataclass(frozen=True, slots=True)
class EventType:
    """One type, as in `deal.won`, and what it says in a sentence."""

    type: str
    description: str


_ALL: Final = """
SELECT type, description
FROM dealix.event_types
ORDER BY type
"""

_UNKNOWN: Final = """
SELECT given.type
FROM unnest(%(types)s::text[]) WITH ORDINALITY AS given (type, place)
WHERE NOT EXISTS (SELECT FROM dealix.event_types known WHERE known.type = given.type)
ORDER BY given.place
"""


async def all_types(conn: Connection) -> list[EventType]:
    """Every type, in the order of the alphabet."""
    cursor = await conn.execute(_ALL)
    return [EventType(*row) for row in await cursor.fetchall()]


async def unknown(conn: Connection, types: Iterable[str]) -> list[str]:
    """Those of `types` that do not exist, in their order. None may contain NUL or a lone surrogate."""
    cursor = await conn.execute(_UNKNOWN, {"types": list(types)})
    return [row[0] for row in await cursor.fetchall()]
