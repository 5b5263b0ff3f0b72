"""The operator's page."""

from __future__ import annotations

import re

import trio

from tests.support.answers import status
from tests.support.api import Served
from tests.support.receiver import open_receiver
from tests.support.visitor import open_visitor, text_of


async def test_only_an_ops_key_opens_it_and_it_opens_no_portal(api: Served) -> None:
    async with open_visitor(api) as visitor:
        assert (await visitor.see("/ops")).url.path == "/ops/login"
        assert (await visitor.send("/ops/login", key=api.keys["acme"])).status_code == 403
        page = await visitor.send("/ops/login", key=api.keys["ops"])
        assert page.url.path == "/ops"
        assert (await visitor.see("/portal/")).url.path == "/portal/login"


async def test_it_shows_what_is_going_on(working_api: Served) -> None:
    async with open_receiver() as receiver, open_visitor(working_api, "ops") as visitor:
        receiver.answer("/gone", status(410))
        await working_api.acme.subscribe(receiver.url("/good"))
        gone = await working_api.acme.subscribe(receiver.url("/gone"))
        event = {"customer_id": "acme", "event_type": "deal.won"}
        await working_api.ops.post("/events/emit", event, wait_s=10)
        text = text_of(await visitor.see("/ops"))
        for words in ("Attempts a second 0.2", "Delivered 50.0 %", "64 / 64", "Disabled gone", gone["id"], "up"):
            assert words in text, words
        assert receiver.url("/good") in text


async def test_a_backlog_shows_as_lag(api: Served) -> None:
    await api.acme.subscribe()
    await api.ops.post("/events/emit", {"customer_id": "acme", "event_type": "deal.won"})
    await trio.sleep(0.3)
    async with open_visitor(api, "ops") as visitor:
        text = text_of(await visitor.see("/ops"))
        lag_s = float(re.findall(r"oldest due ([0-9.]+) s", text)[0])
        assert lag_s >= 0.2
        assert "Due now 1" in text
        assert "No daemon holds a shard" in text


async def test_it_makes_a_link_to_a_customers_portal(api: Served) -> None:
    async with open_visitor(api, "ops") as visitor:
        await visitor.see("/ops")
        made = await visitor.send("/ops", customer_id="acme")
        (link,) = set(re.findall(r"http://[^<\s]*/portal/enter/[\w-]{43}", made.text))
        refused = await visitor.send("/ops", customer_id="not a name")
        assert refused.status_code == 422
        assert "must be 1 to 64 characters" in text_of(refused)
    async with open_visitor(api) as customer:
        assert (await customer.see(link.removeprefix(api.url))).url.path == "/portal/"
