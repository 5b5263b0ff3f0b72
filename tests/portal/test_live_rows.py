"""What a log page that is open asks for again and again, and what it gets."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from daemon import clock
from tests.support.api import Served
from tests.support.log import Row, write
from tests.support.visitor import Visitor

W1: Final = "whk_" + "1" * 24
ROWS: Final = "/portal/deliveries/rows"


async def log(api: Served, *rows: Row) -> list[str]:
    async with api.pool.connection(10) as conn:
        return await write(conn, rows)


async def asked_for(visitor: Visitor, **query: str) -> str:
    """Where the page of these filters asks."""
    (live,) = re.findall(r'hx-get="([^"]+)"', (await visitor.see("/portal/deliveries", **query)).text)
    return live.replace("&amp;", "&")


def ids_in(text: str) -> list[str]:
    return re.findall(r'data-id="(dlv_\w+)"', text)


async def test_it_is_told_of_rows_that_came_after_the_newest_it_has(api: Served, acme: Visitor) -> None:
    now = clock.now()
    old, seen = await log(
        api, Row(W1, created_at=now - timedelta(minutes=20)), Row(W1, created_at=now - timedelta(minutes=9))
    )
    path = await asked_for(acme)
    assert path == f"{ROWS}?"
    assert ids_in((await acme.see(path)).text) == [seen, old]
    assert (await acme.see(ROWS, seen=seen)).status_code == 204
    assert (await acme.see(ROWS, seen=seen, event_type="deal.won")).status_code == 204
    (new,) = await log(api, Row(W1))
    for query in ({}, {"event_type": "deal.won"}, {"outcome": "success"}, {"subscription_id": W1}):
        assert ids_in((await acme.see(ROWS, seen=seen, **query)).text) == [new, seen, old]
    assert (await acme.see(ROWS, seen=seen, event_type="deal.lost")).status_code == 204
    for nonsense in ("dlv_" + "f" * 24, "dlv_x", "1"):
        assert ids_in((await acme.see(ROWS, seen=nonsense)).text) == [new, seen, old]


async def test_without_any_row_it_asks_for_those_to_come_and_not_through_the_whole_log(
    api: Served, acme: Visitor
) -> None:
    path = await asked_for(acme, event_type="deal.lost")
    assert "since=" in path
    assert (await acme.see(path)).status_code == 204
    _, new = await log(
        api,
        Row(W1, event_type="deal.lost", created_at=clock.now() - timedelta(minutes=9)),
        Row(W1, event_type="deal.lost"),
    )
    assert ids_in((await acme.see(path)).text) == [new]
    assert (await acme.see(f"{path}&seen={new}")).status_code == 204
    assert await asked_for(acme, event_type="deal.lost") == f"{ROWS}?event_type=deal.lost"
    until = clock.iso(clock.now() - timedelta(days=1))[:16]
    assert "since" not in await asked_for(acme, until=until)
