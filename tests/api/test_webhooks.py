"""Subscriptions over HTTP: created, listed, read, changed, deleted."""

from __future__ import annotations

import pytest
import trio

from daemon.policy.signing import standard_key
from daemon.sender.endpoint import Sender
from tests.support.api import NOWHERE, Asker, Served, open_api

S_FIELDS = {
    "id", "customer_id", "endpoint_url", "events", "description", "propagate_trace_context", "enabled",
    "disabled_reason", "last_delivery_at", "last_status_code", "consecutive_failures", "circuit", "created_at",
    "updated_at",
}  # fmt: skip


@pytest.mark.threat("N94")
async def test_a_new_subscription_answers_what_the_contract_says_and_its_secret_once(api: Served) -> None:
    made = await api.acme.subscribe(f"{NOWHERE}?token=x", events=["deal.won", "deal.lost", "deal.won"], description="d")
    assert set(made) == {
        "id", "customer_id", "endpoint_url", "events", "description", "propagate_trace_context", "secret",
        "secret_warning", "verification_example_python",
    }  # fmt: skip
    assert made["customer_id"] == "acme"
    assert made["events"] == ["deal.won", "deal.lost"]
    assert standard_key(made["secret"]) is not None
    shown = (await api.acme.get(f"/webhooks/{made['id']}")).json()
    listed = (await api.acme.get("/webhooks")).json()
    assert set(shown) == S_FIELDS
    assert listed == {"customer_id": "acme", "count": 1, "subscriptions": [shown], "next_cursor": None}
    assert shown["endpoint_url"] == f"{NOWHERE}?token=x"
    assert (shown["enabled"], shown["circuit"], shown["consecutive_failures"]) == (True, "closed", 0)
    assert shown["created_at"].endswith("Z")
    patched = await api.acme.patch(f"/webhooks/{made['id']}", {"description": None})
    for answer in (str(shown), str(listed), patched.text):
        assert made["secret"] not in answer


async def test_no_events_means_all_of_them(api: Served) -> None:
    assert (await api.acme.subscribe())["events"] == "all"
    assert (await api.acme.subscribe(events=[]))["events"] == "all"
    assert [one["events"] for one in (await api.acme.get("/webhooks")).json()["subscriptions"]] == [[], []]


async def test_an_ops_key_subscribes_for_the_customer_that_it_names(api: Served) -> None:
    made = await api.ops.subscribe(customer_id="globex")
    assert (await api.globex.get(f"/webhooks/{made['id']}")).status_code == 200


REFUSED_URLS: list[tuple[str, int, str | None]] = [
    ("http://example.com/hook", 400, "url_not_https"),
    ("ftp://example.com", 400, "url_not_https"),
    ("javascript:alert(1)", 400, "url_not_https"),
    ("", 400, "url_not_https"),
    ("https://", 422, "url_malformed"),
    ("https://user:pw@example.com/", 422, "url_malformed"),
    ("https://example.com/#part", 422, "url_malformed"),
    ("https://exa mple.com/", 422, "url_malformed"),
    ("https://example.com/\x00", 422, "url_malformed"),
    ("https://example.com/\r\nX: y", 422, "url_malformed"),
    ("https://example.com:99999/", 422, "url_malformed"),
    ("https://example.com/" + "a" * 500, 422, "url_malformed"),
    ("https://10.0.0.1/", 422, "url_forbidden"),
    ("https://169.254.169.254/latest", 422, "url_forbidden"),
    ("https://[::ffff:10.0.0.1]/", 422, "url_forbidden"),
    ("https://[fd00::1]/", 422, "url_forbidden"),
    ("https://0x7f.1/", 422, None),
    ("https://example.com:25/", 422, "url_forbidden"),
]


@pytest.mark.threat("N32")
async def test_a_url_that_may_not_be_called_is_refused_at_registration_and_at_change(api: Served) -> None:
    made = await api.acme.subscribe()
    for url, status, code in REFUSED_URLS:
        for answer in (
            await api.acme.post("/webhooks", {"endpoint_url": url}),
            await api.acme.patch(f"/webhooks/{made['id']}", {"endpoint_url": url}),
        ):
            assert answer.status_code == status, f"{url}: {answer.text}"
            assert code in {None, answer.json()["code"]}, url
    assert (await api.acme.get("/webhooks")).json()["count"] == 1
    assert (await api.acme.get(f"/webhooks/{made['id']}")).json()["endpoint_url"] == NOWHERE


@pytest.mark.threat("N32")
async def test_a_name_is_looked_up_at_registration_and_refused_only_where_it_leads_inside(
    migrated_database: str,
) -> None:
    dns = {"inside.example": ["10.0.0.1"], "mixed.example": ["1.1.1.1", "10.0.0.1"], "good.example": ["1.1.1.1"]}

    def look_up(host: str) -> list[str]:
        if host in dns:
            return dns[host]
        raise OSError(-2, "Name or service not known")

    with trio.fail_after(20):
        async with open_api(migrated_database, sender=Sender(timeout_s=1, resolve=look_up)) as served:
            for host, status in (("inside", 422), ("mixed", 422), ("good", 201), ("unheard-of", 201)):
                answer = await served.acme.post("/webhooks", {"endpoint_url": f"https://{host}.example/"})
                assert answer.status_code == status, host
                assert "10.0.0.1" not in answer.text


@pytest.mark.threat("N69")
async def test_unknown_event_types_are_400_and_named(api: Served) -> None:
    made = await api.acme.subscribe()
    for events in (["no.such"], ["deal.won", "\x00"], ["DEAL.WON"], [""], ["deal.won' OR 1=1"], ["*"], ["x" * 129]):
        for answer in (
            await api.acme.post("/webhooks", {"endpoint_url": NOWHERE, "events": events}),
            await api.acme.patch(f"/webhooks/{made['id']}", {"events": events}),
        ):
            expected = (422, "invalid") if len(events[-1]) > 128 else (400, "unknown_event_type")
            assert (answer.status_code, answer.json()["code"]) == expected, events
            assert len(events[-1]) > 128 or events[-1] in answer.json()["detail"]


async def test_the_hundred_and_first_subscription_is_409_also_when_many_come_at_once(api: Served) -> None:
    await api.run(
        """INSERT INTO dealix.subscriptions (id, customer_id, endpoint_url, secret_sealed)
           SELECT 'whk_' || lpad(i::text, 24, '0'), 'acme', 'https://example.com/', '' FROM generate_series(1, 95) i"""
    )
    statuses: list[int] = []

    async def create() -> None:
        statuses.append((await api.acme.post("/webhooks", {"endpoint_url": NOWHERE})).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(create)
    assert sorted(statuses) == [201] * 5 + [409] * 5
    answer = await api.acme.post("/webhooks", {"endpoint_url": NOWHERE})
    assert answer.json()["code"] == "too_many_subscriptions"


async def walk(asker: Asker, path: str, key: str, **query: str | int | bool) -> list[str]:
    """The ids on all pages of a list."""
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await asker.get(path, **query, **cursor)).json()
        assert page["count"] == len(page[key])
        found += [one["id"] for one in page[key]]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


async def test_pages_are_newest_first_and_hold_each_subscription_once(api: Served) -> None:
    made = [(await api.acme.subscribe())["id"] for _ in range(7)]
    await api.globex.subscribe()
    # Two of the same microsecond, as a bulk import makes them.
    await api.run(
        "UPDATE dealix.subscriptions SET created_at = date_trunc('second', created_at) WHERE customer_id = 'acme'"
    )
    for limit in (1, 3, 7, 8, 500):
        found = await walk(api.acme, "/webhooks", "subscriptions", limit=limit)
        assert sorted(found) == sorted(made)
        assert len(set(found)) == len(found)
    await api.acme.patch(f"/webhooks/{made[2]}", {"enabled": False})
    assert made[2] not in await walk(api.acme, "/webhooks", "subscriptions", enabled_only=True, limit=2)


async def test_a_change_changes_what_it_names_and_nothing_else(api: Served) -> None:
    path = f"/webhooks/{(await api.acme.subscribe(description='before', events=['deal.won']))['id']}"
    before = (await api.acme.get(path)).json()
    assert (await api.acme.patch(path, {})).json() | {"updated_at": 0} == before | {"updated_at": 0}
    for change in (
        {"description": "after"},
        {"description": None},
        {"events": ["deal.lost"]},
        {"events": []},
        {"endpoint_url": f"{NOWHERE}/b"},
        {"propagate_trace_context": True},
        {"propagate_trace_context": False},
    ):
        before = (await api.acme.get(path)).json()
        after = (await api.acme.patch(path, change)).json()
        assert after | {"updated_at": 0} == before | change | {"updated_at": 0}
        assert after["updated_at"] >= before["updated_at"]


async def test_disabling_says_requested_and_enabling_clears_failures_and_breaker(api: Served) -> None:
    path = f"/webhooks/{(await api.acme.subscribe())['id']}"
    off = (await api.acme.patch(path, {"enabled": False})).json()
    assert (off["enabled"], off["disabled_reason"]) == (False, "requested")
    await api.run(
        """UPDATE dealix.subscription_health SET consecutive_failures = 20, circuit = 'open',
           reopen_at = now() + interval '1 h'"""
    )
    assert (await api.acme.get(path)).json()["circuit"] == "open"
    await api.run("UPDATE dealix.subscription_health SET reopen_at = now()")
    assert (await api.acme.get(path)).json()["circuit"] == "half_open"
    on = (await api.acme.patch(path, {"enabled": True})).json()
    assert (on["enabled"], on["disabled_reason"], on["consecutive_failures"], on["circuit"]) == (
        True,
        None,
        0,
        "closed",
    )


async def test_a_deleted_subscription_is_gone(api: Served) -> None:
    made = await api.acme.subscribe()
    path = f"/webhooks/{made['id']}"
    assert (await api.acme.delete(path)).json() == {"id": made["id"], "deleted": True}
    for answer in (
        await api.acme.get(path),
        await api.acme.delete(path),
        await api.acme.patch(path, {"enabled": True}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert (await api.acme.get("/webhooks")).json()["count"] == 0
