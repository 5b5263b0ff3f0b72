"""Figures over HTTP."""

from __future__ import annotations

from datetime import timedelta

from daemon import clock
from tests.support.answers import status
from tests.support.api import Served
from tests.support.receiver import open_receiver

EVENT = {"customer_id": "acme", "event_type": "deal.won"}


async def test_the_figures_of_a_customer_have_the_contracts_shape_and_count_whole_days(api: Served) -> None:
    await api.acme.subscribe()
    off = (await api.acme.subscribe())["id"]
    await api.acme.patch(f"/webhooks/{off}", {"enabled": False})
    today = clock.now().date()
    for days_ago, event_type, success, failed, duration_ms in (
        (0, "deal.won", 3, 1, 100),
        (6, "deal.lost", 2, 0, 50),
        (7, "deal.won", 100, 100, 9999),
    ):
        await api.run(
            "INSERT INTO dealix.daily_stats VALUES (%(day)s, 'acme', %(type)s, %(success)s, %(failed)s, %(ms)s, '{}')",
            day=today - timedelta(days=days_ago), type=event_type, success=success, failed=failed, ms=duration_ms,
        )  # fmt: skip
    assert (await api.acme.get("/stats")).json() == {
        "customer_id": "acme",
        "period_days": 7,
        "subscriptions": {"total": 2, "enabled": 1, "disabled": 1},
        "deliveries": {"total": 6, "success": 5, "failed": 1, "success_rate": 0.8333, "avg_latency_ms": 25.0},
        "by_event_type": {
            "deal.lost": {"total": 2, "success": 2, "failed": 0},
            "deal.won": {"total": 4, "success": 3, "failed": 1},
        },
    }
    assert (await api.acme.get("/stats", period_days=1)).json()["deliveries"]["total"] == 4
    assert (await api.ops.get("/stats", customer_id="acme", period_days=8)).json()["deliveries"]["total"] == 206


async def test_a_customer_without_anything_has_zeroes(api: Served) -> None:
    assert (await api.globex.get("/stats")).json() == {
        "customer_id": "globex",
        "period_days": 7,
        "subscriptions": {"total": 0, "enabled": 0, "disabled": 0},
        "deliveries": {"total": 0, "success": 0, "failed": 0, "success_rate": 0.0, "avg_latency_ms": 0.0},
        "by_event_type": {},
    }


async def test_a_period_is_1_to_90_days(api: Served) -> None:
    for period_days in (0, 91, -1, 10**30, "x", "", "7.5"):
        answer = await api.acme.get("/stats", period_days=period_days)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "period_days"), period_days


async def test_what_was_just_delivered_is_counted(working_api: Served) -> None:
    async with open_receiver() as receiver:
        receiver.answer("/hook", status(200), status(404))
        await working_api.acme.subscribe(receiver.url("/hook"))
        for _ in range(2):
            await working_api.ops.post("/events/emit", EVENT, wait_s=10)
        figures = (await working_api.acme.get("/stats")).json()["deliveries"]
        assert (figures["success"], figures["failed"], figures["success_rate"]) == (1, 1, 0.5)
