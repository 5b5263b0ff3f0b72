"""Bulk replays over HTTP: counted, begun, read, listed, cancelled."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from daemon import clock
from tests.support.api import Asker, Served
from tests.support.receiver import open_receiver

EVENT = {"customer_id": "acme", "event_type": "deal.won"}
SHOWN = {
    "id", "customer_id", "subscription_id", "status", "since", "until", "state", "queued", "exact", "done", "failed",
    "created_at", "ended_at",
}  # fmt: skip


def since(**ago: float) -> str:
    return clock.iso(clock.now() - timedelta(**(ago or {"hours": 1})))


async def recover(asker: Asker, webhook_id: str, **fields: object) -> dict[str, Any]:
    """The body of a recovery that was begun."""
    answer = await asker.post(f"/webhooks/{webhook_id}/recover", {"since": since(), "status": "missed"} | fields)
    assert answer.status_code == 202, answer.text
    return answer.json()


async def ended(asker: Asker, recovery_id: str) -> dict[str, Any]:
    while (found := (await asker.get(f"/recoveries/{recovery_id}")).json())["state"] == "running":
        pass
    return found


async def emit(api: Served, count: int) -> list[str]:
    answer = await api.ops.post("/events/emit/batch", {"events": [EVENT] * count})
    return [one["event_id"] for one in answer.json()["events"]]


async def test_what_was_missed_is_counted_by_a_dry_run_and_sent_by_a_recovery(working_api: Served) -> None:
    async with open_receiver() as receiver:
        events = await emit(working_api, 5)
        made = await working_api.acme.subscribe(receiver.url("/hook"))
        asked = {"since": since(), "status": "missed", "dry_run": True}
        dry = await working_api.acme.post(f"/webhooks/{made['id']}/recover", asked)
        assert dry.status_code == 200
        assert set(dry.json()) == {"subscription_id", "status", "since", "until", "queued", "exact", "dry_run"}
        assert (dry.json()["queued"], dry.json()["exact"], dry.json()["dry_run"]) == (5, True, True)
        assert await working_api.rows("SELECT 1 FROM dealix.recoveries") == []
        begun = await recover(working_api.acme, made["id"])
        assert set(begun) == SHOWN
        assert (begun["queued"], begun["state"], begun["done"], begun["ended_at"]) == (5, "running", 0, None)
        found = await ended(working_api.acme, begun["id"])
        assert (found["state"], found["queued"], found["done"], found["failed"]) == ("finished", 5, 5, 0)
        assert found["ended_at"] > found["created_at"] > found["since"]
        assert sorted(r.headers["webhook-id"] for r in receiver.received) == sorted(events)
        assert (await working_api.ops.get(f"/recoveries/{begun['id']}")).json() == found


async def test_a_disabled_subscription_is_409_but_may_be_counted_and_so_is_one_that_is_recovering(api: Served) -> None:
    made = await api.acme.subscribe()
    path = f"/webhooks/{made['id']}/recover"
    await api.acme.patch(f"/webhooks/{made['id']}", {"enabled": False})
    await emit(api, 2)
    refused = await api.acme.post(path, {"since": since(), "status": "all"})
    assert (refused.status_code, refused.json()["code"]) == (409, "subscription_disabled")
    dry = await api.acme.post(path, {"since": since(), "status": "all", "dry_run": True})
    assert (dry.status_code, dry.json()["queued"]) == (200, 2)
    await api.acme.patch(f"/webhooks/{made['id']}", {"enabled": True})
    await recover(api.acme, made["id"])
    refused = await api.acme.post(path, {"since": since(), "status": "failed"})
    assert (refused.status_code, refused.json()["code"]) == (409, "recovery_running")


async def test_values_that_make_no_sense_are_refused_by_name(api: Served) -> None:
    made = await api.acme.subscribe()
    path = f"/webhooks/{made['id']}/recover"
    bad: list[tuple[dict[str, object], str]] = [
        ({"status": "all"}, "since"),
        ({"since": since()}, "status"),
        ({"since": "yesterday", "status": "all"}, "since"),
        ({"since": "2026-01-01T00:00:00", "status": "all"}, "since"),
        ({"since": since(), "until": since(hours=2), "status": "all"}, "until"),
        ({"since": since(), "status": "everything"}, "status"),
        ({"since": since(), "status": "all", "limit": 3}, "limit"),
        ({"since": since(), "status": "all", "dry_run": "yes"}, "dry_run"),
    ]
    for body, field in bad:
        answer = await api.acme.post(path, body)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), body
    for moment in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"):
        answer = await api.acme.post(path, {"since": moment, "status": "all", "dry_run": True})
        assert answer.status_code == (200 if moment < "1" else 422)


async def test_a_recovery_is_cancelled_once_and_stays_so(api: Served) -> None:
    made = await api.acme.subscribe()
    begun = await recover(api.acme, made["id"])
    cancelled = await api.acme.post(f"/recoveries/{begun['id']}/cancel")
    assert cancelled.status_code == 200
    assert cancelled.json()["state"] == "cancelled"
    assert (await api.acme.post(f"/recoveries/{begun['id']}/cancel")).json() == cancelled.json()
    assert (await api.acme.get(f"/recoveries/{begun['id']}")).json() == cancelled.json()


async def test_the_list_is_newest_first_by_subscription_and_walks_by_cursor(api: Served) -> None:
    hooks = [(await api.acme.subscribe())["id"] for _ in range(3)]
    begun = [await recover(api.acme, hook) for hook in hooks]
    page = (await api.acme.get("/recoveries", limit=2)).json()
    assert set(page) == {"customer_id", "count", "recoveries", "next_cursor"}
    assert page["recoveries"] == [begun[2], begun[1]]
    rest = (await api.acme.get("/recoveries", limit=2, cursor=page["next_cursor"])).json()
    assert (rest["recoveries"], rest["next_cursor"]) == ([begun[0]], None)
    assert (await api.acme.get("/recoveries", subscription_id=hooks[1])).json()["recoveries"] == [begun[1]]
    assert (await api.ops.get("/recoveries", customer_id="acme")).json()["count"] == 3
    assert (await api.globex.get("/recoveries")).json()["recoveries"] == []
    assert (await api.globex.get("/recoveries", subscription_id=hooks[1])).json()["recoveries"] == []
    assert (await api.acme.get("/recoveries", subscription_id=hooks[1], cursor=page["next_cursor"])).status_code == 422


async def test_an_id_of_no_recovery_is_404(api: Served) -> None:
    for recovery_id in ("rec_" + "0" * 24, "x", "%00", "dlv_" + "0" * 24, "9" * 400):
        assert (await api.acme.get(f"/recoveries/{recovery_id}")).status_code == 404
        assert (await api.acme.post(f"/recoveries/{recovery_id}/cancel")).status_code == 404
