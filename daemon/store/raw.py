"""Inserting events that came by raw NOTIFY: many in one transaction, a refused one costs the others nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from daemon.store.connection import Connection

_EMIT_RAW: Final = """
    SELECT ordinal, reason
    FROM dealix.emit_raw(%(customers)b::text[], %(types)b::text[], %(payloads)b::text[], %(ids)b::text[])
"""


async def emit_raw(conn: Connection, events: Sequence[tuple[str, str, str, str | None]]) -> list[str]:
    """Emit (customer_id, event_type, payload, event_id) each; returns the reasons of those that were refused."""
    cursor = await conn.execute(
        _EMIT_RAW,
        {
            "customers": [e[0] for e in events],
            "types": [e[1] for e in events],
            "payloads": [e[2] for e in events],
            "ids": [e[3] for e in events],
        },
    )
    return [reason for _, reason in await cursor.fetchall()]
