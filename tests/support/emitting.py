"""Calling dealix.emit in plain SQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import psycopg
import pytest

Session: TypeAlias = psycopg.Connection[tuple[object, ...]]
Open: TypeAlias = Callable[[], Session]
LOCKS: Final = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
"""Advisory locks of the own session."""
SUBSCRIBE: Final = """
    INSERT INTO dealix.subscriptions (id, customer_id, endpoint_url, events, enabled, disabled_reason, secret_sealed)
    VALUES ('whk_' || lpad(%(n)s::text, 24, '0'), %(customer)s, 'https://example.com/', %(events)s, %(enabled)s,
            CASE WHEN NOT %(enabled)s THEN 'requested' END, '')
"""


def subscribe(
    db: Session, n: int, customer: str = "acme", events: tuple[str, ...] = (), *, enabled: bool = True
) -> str:
    db.execute(SUBSCRIBE, {"n": n, "customer": customer, "events": list(events), "enabled": enabled})
    return f"whk_{n:024}"


def emit(db: Session, payload: str = "{}", event_id: str | None = None, **fields: str | None) -> tuple[str, int]:
    given = {"customer_id": "acme", "event_type": "deal.won", "payload": payload, "event_id": event_id} | fields
    cursor = db.execute(
        "SELECT * FROM dealix.emit(%(customer_id)s, %(event_type)s, %(payload)s::text, event_id => %(event_id)s)", given
    )
    ((made_id, matched),) = cursor.fetchall()
    assert isinstance(made_id, str)
    assert isinstance(matched, int)
    return made_id, matched


def refusal(db: Session, payload: str = "{}", event_id: str | None = None, **fields: str | None) -> tuple[str, str]:
    """The SQLSTATE and message with which an emit is refused."""
    with pytest.raises(psycopg.Error) as refused:
        emit(db, payload, event_id, **fields)
    assert db.execute("SELECT count(*) FROM dealix.events").fetchone() == (0,)
    return refused.value.sqlstate or "", refused.value.diag.message_primary or ""


def woken(listener: Session) -> list[str]:
    """The payloads that have arrived by now; the empty query makes the server send what it has."""
    listener.execute("SELECT")
    return [notify.payload for notify in listener.notifies(timeout=0)]
