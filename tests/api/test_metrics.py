"""What Prometheus is told: who may ask, that it is true, and that dashboard and alert rules ask for nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import trio
import yaml
from prometheus_client.parser import text_string_to_metric_families

from api import metrics
from api.server import listen, serve
from tests.support.answers import status
from tests.support.api import BASE, Served, open_api
from tests.support.migrated import migrated_template
from tests.support.own_server import OwnServer
from tests.support.receiver import open_receiver

EVENT: Final = {"customer_id": "acme", "event_type": "deal.won"}
MONITORING: Final = Path(__file__).parents[2] / "docs/monitoring"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(text: str) -> Samples:
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    found = [sample for family in families for sample in family.samples]
    samples = {(one.name, frozenset(one.labels.items())): one.value for one in found}
    assert len(samples) == len(found), "a series twice"
    return samples


async def scrape(api: Served) -> Samples:
    answer = await api.client.get("/metrics", headers=api.ops.headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return samples_of(answer.text)


def value(samples: Mapping[Any, float], name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is asked at each scrape."""
    monkeypatch.setattr(metrics, "FRESH_S", 0.0)


async def test_it_is_for_ops_keys(api: Served) -> None:
    assert (await api.client.get("/metrics")).status_code == 401
    assert (await api.client.get("/metrics", headers={"Authorization": "Bearer dlx_wrong"})).status_code == 401
    refused = await api.client.get("/metrics", headers=api.acme.headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "ops_only")
    assert (await api.client.get("/metrics", headers=api.ops.headers)).headers["Cache-Control"] == "no-store"


@pytest.mark.usefixtures("unhurried")
async def test_the_numbers_move_when_deliveries_happen(working_api: Served) -> None:
    async with open_receiver() as receiver:
        receiver.answer("/gone", status(410))
        receiver.answer("/down", status(503))
        before = await scrape(working_api)
        assert value(before, "dealix_attempts_total", outcome="delivered") == 0
        assert value(before, "dealix_subscriptions_enabled", circuit="closed") == 0
        for path in ("/good", "/gone", "/down"):
            await working_api.acme.subscribe(receiver.url(path))
        for _ in range(2):  # the second one finds the endpoint gone
            await working_api.ops.post("/events/emit", EVENT, wait_s=10)
        after = await scrape(working_api)
    outcomes = {o: value(after, "dealix_attempts_total", outcome=o) for o in ("delivered", "gone", "retry")}
    assert outcomes == {"delivered": 2, "gone": 1, "retry": 2}
    assert value(after, "dealix_attempt_duration_seconds_count") == 5
    assert value(after, "dealix_attempt_duration_seconds_bucket", le="+Inf") == 5
    assert 0 < value(after, "dealix_attempt_duration_seconds_sum") < 10
    assert value(after, "dealix_recorder_batch_size_sum") == 5
    assert value(after, "dealix_fanout_batch_size_sum") == 2
    assert value(after, "dealix_subscriptions_disabled", reason="gone") == 1
    assert value(after, "dealix_subscriptions_enabled", circuit="closed") == 2
    assert value(after, "dealix_active_subscriptions") == 3
    assert value(after, "dealix_shards") == 64
    assert value(after, "dealix_members") == 1
    assert value(after, "dealix_ready") == 1
    lag = "dealix_event_loop_lag_seconds_count"
    assert value(after, lag) > value(before, lag)


@pytest.mark.usefixtures("unhurried")
async def test_what_is_in_flight_and_what_waits_shows_while_it_lasts(working_api: Served) -> None:
    async with open_receiver() as receiver:
        receiver.answer_all(status(200, delay_s=1.5))
        await working_api.acme.subscribe(receiver.url())
        batch = {"events": [EVENT] * 20}
        assert (await working_api.ops.post("/events/emit/batch", batch)).status_code == 202
        await receiver.wait_for(1)
        during = await scrape(working_api)
        in_flight = [value(during, "dealix_requests_in_flight", lane=lane) for lane in ("wide", "slow")]
        claims, mailbox = value(during, "dealix_claims"), value(during, "dealix_mailbox_claims")
        assert sum(in_flight) >= 1
        assert claims == mailbox + sum(in_flight) == 20
        assert value(during, "dealix_deliveries", state="claimed") == 20
        assert value(during, "dealix_event_bytes") > 20 * 100


@pytest.mark.usefixtures("unhurried")
async def test_a_backlog_shows_as_lag(api: Served) -> None:
    # The engine of this fixture has not been started.
    await api.acme.subscribe()
    await api.ops.post("/events/emit", EVENT)
    await trio.sleep(0.3)
    samples = await scrape(api)
    assert value(samples, "dealix_outbox_events") == 1
    assert 0.2 < value(samples, "dealix_outbox_age_seconds") < 20
    assert (value(samples, "dealix_ready"), value(samples, "dealix_listening")) == (0, 0)
    await api.run(
        "INSERT INTO dealix.deliveries (event_id, event_day, event_type, subscription_id, shard, attempt, steps, due, "
        "claimed) SELECT event_id, event_day, event_type, subscription_ids[1], shard, 1, 1, now() - interval '9 s', "
        "false FROM dealix.outbox"
    )
    assert 9 <= value(await scrape(api), "dealix_oldest_due_seconds") < 30


async def test_however_often_it_is_scraped_the_database_is_asked_once_in_a_while(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "FRESH_S", 1.0)
    assert value(await scrape(api), "dealix_subscriptions_enabled", circuit="closed") == 0
    read_at = trio.current_time()
    await api.acme.subscribe()
    seen = value(await scrape(api), "dealix_subscriptions_enabled", circuit="closed")
    assert seen == 0 or trio.current_time() - read_at > 1
    await trio.sleep(1.1)
    assert value(await scrape(api), "dealix_subscriptions_enabled", circuit="closed") == 1


@pytest.mark.threat("N85")
async def test_no_customer_endpoint_or_key_is_named(working_api: Served) -> None:
    async with open_receiver() as receiver:
        made = await working_api.acme.subscribe(receiver.url("/private"), description="between-us")
        await working_api.ops.post("/events/emit", EVENT, wait_s=10)
        text = (await working_api.client.get("/metrics", headers=working_api.ops.headers)).text
        for mark in ("acme", made["id"], made["secret"], "private", "between-us", "127.0.0.1", "dlx_", "deal.won"):
            assert mark not in text, mark


@pytest.fixture
def own_database(own_server: OwnServer) -> str:
    return migrated_template(own_server.url)


@pytest.mark.usefixtures("unhurried")
async def test_on_its_own_address_it_needs_no_key_and_goes_on_without_a_database(
    own_server: OwnServer, own_database: str
) -> None:
    with trio.fail_after(50):
        async with open_api(own_database, working=True) as served, trio.open_nursery() as nursery:
            stop = trio.Event()
            app = metrics.create_app(served.services)
            (url,) = await nursery.start(partial(serve, app, [listen("127.0.0.1:0")], stop=stop, grace_s=2))
            async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
                await until_ready(client, 1)
                for path in ("/", "/healthz", f"{BASE}/webhooks", "/openapi.json", "/ops"):
                    assert (await client.get(path)).status_code == 404, path
                assert (await client.post("/metrics")).status_code == 405
                own_server.freeze()
                began = trio.current_time()
                frozen = await until_ready(client, 0)
                assert trio.current_time() - began < 8
                assert ("dealix_outbox_events", frozenset()) not in frozen
                assert value(frozen, "dealix_attempts_total", outcome="delivered") == 0
                own_server.thaw()
                assert ("dealix_outbox_events", frozenset()) in await until_ready(client, 1)
            stop.set()


async def until_ready(client: httpx.AsyncClient, ready: int) -> Samples:
    """The first scrape that says so."""
    while True:
        answer = await client.get("/metrics")
        assert answer.status_code == 200
        if value(samples := samples_of(answer.text), "dealix_ready") == ready:
            return samples
        await trio.sleep(0.05)


# -- the files of docs/monitoring --------------------------------------------------------------------------------------

_NAME: Final = re.compile(r"\b(?:dealix|process)_[a-z_]+\b")
_SELECTED: Final = re.compile(
    r'\b((?:dealix|process)_[a-z_]+)\{[^}]*?\b(outcome|circuit|reason|state|lane|queue|le)="([^"]*)"'
)


def dashboard() -> list[str]:
    """Every expression of the dashboard."""
    board = json.loads((MONITORING / "dashboard.json").read_text())
    shown = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert all(panel["title"] and panel["targets"] for panel in shown)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    return [target["expr"] for panel in shown for target in panel["targets"]]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


async def test_dashboard_and_rules_ask_for_nothing_that_is_not_exported(working_api: Served) -> None:
    samples = await scrape(working_api)
    exported = {name for name, _ in samples}
    expressions = [*dashboard(), *(rule["expr"] for rule in rules())]
    asked = {name for one in expressions for name in _NAME.findall(one)}
    assert len(asked) > 25
    assert asked - exported == set()
    selected = {found for one in expressions for found in _SELECTED.findall(one)}
    assert ("dealix_attempts_total", "outcome", "delivered") in selected
    for name, label, wanted in selected:
        assert any(found == name and (label, wanted) in labels for found, labels in samples), (name, label, wanted)


async def test_the_dashboard_leaves_out_nothing_that_is_exported(working_api: Served) -> None:
    exported = {re.sub("_(bucket|sum|count)$", "", name) for name, _ in await scrape(working_api)}
    shown = {re.sub("_(bucket|sum|count)$", "", name) for one in dashboard() for name in _NAME.findall(one)}
    assert exported - shown == set()


def test_every_alert_says_how_grave_it_is_and_stands_in_the_manual() -> None:
    manual = (MONITORING.parent / "operations.md").read_text()
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 10
    for rule in rules():
        assert rule["labels"]["severity"] in {"page", "warning"}
        assert rule["annotations"]["summary"]
        assert f"| `{rule['alert']}` |" in manual, rule["alert"]
    assert set(re.findall(r"\| `(Dealix\w+)` \|", manual)) == set(names)
