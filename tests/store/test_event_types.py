"""The list of event types, and what is not in it."""

from __future__ import annotations

import trio

from daemon.store import event_types
from daemon.store.connection import Connection


async def test_every_type_has_a_sentence_and_the_list_is_in_order(conn: Connection) -> None:
    with trio.fail_after(10):
        types = await event_types.all_types(conn)
    for operational in (False, True):
        names = [t.type for t in types if t.operational is operational]
        assert names == sorted(names)
    assert {"deal.won", "lead.created"} <= {t.type for t in types}
    assert all(t.description.endswith(".") for t in types)


async def test_unknown_types_come_back_in_the_order_they_were_asked_for(conn: Connection) -> None:
    asked = ["zebra.born", "deal.won", "Deal.Won", "", "a.b", "*"]
    with trio.fail_after(10):
        assert await event_types.unknown(conn, asked) == ["zebra.born", "Deal.Won", "", "a.b", "*"]
        assert await event_types.unknown(conn, []) == []
        assert await event_types.unknown(conn, ["endpoint.failing", "endpoint.moved"]) == ["endpoint.moved"]
