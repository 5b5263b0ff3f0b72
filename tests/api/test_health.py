"""Liveness, readiness, and the database away."""

from __future__ import annotations

import pytest
import trio

from daemon.store.connection import connect
from tests.support.api import BASE, NOWHERE, Served, open_api
from tests.support.migrated import migrated_template
from tests.support.own_server import OwnServer

ANSWER_S = 2.0


async def test_alive_and_ready_while_everything_is_up(working_api: Served) -> None:
    assert (await working_api.client.get("/healthz")).json() == {"status": "ok"}
    ready = await working_api.client.get("/readyz?cache=no")
    assert ready.status_code == 200
    assert ready.json()["listening"] is True


async def test_not_ready_without_the_listening_connection_or_with_another_schema(api: Served) -> None:
    # The engine of this fixture has not been started, so that it does not listen.
    deaf = await api.client.get("/readyz")
    assert (deaf.status_code, deaf.json()["code"]) == (503, "not_listening")
    await api.run("INSERT INTO dealix.schema_migrations VALUES (9000, '9000_of_tomorrow', 'x')")
    newer = await api.client.get("/readyz")
    assert newer.json()["code"] == "not_listening", "the schema of the next version is no fault of this one's"
    await api.run("UPDATE dealix.schema_migrations SET version = version + 10000")
    other = await api.client.get("/readyz")
    assert (other.status_code, other.json()["code"]) == (503, "schema_mismatch")
    assert other.headers["Retry-After"]
    assert (await api.client.get("/healthz")).status_code == 200


ROUTES: list[tuple[str, str, object]] = [
    ("GET", f"{BASE}/event-types", None),
    ("GET", f"{BASE}/webhooks", None),
    ("POST", f"{BASE}/webhooks", {"endpoint_url": NOWHERE, "customer_id": "acme"}),
    ("GET", f"{BASE}/webhooks/whk_{'0' * 24}", None),
    ("DELETE", f"{BASE}/webhooks/whk_{'0' * 24}", None),
    ("POST", f"{BASE}/webhooks/whk_{'0' * 24}/test", None),
    ("POST", f"{BASE}/events/emit", {"customer_id": "acme", "event_type": "deal.won"}),
    ("POST", f"{BASE}/events/emit/batch", {"events": [{"customer_id": "acme", "event_type": "deal.won"}]}),
    ("GET", f"{BASE}/deliveries", None),
    ("GET", f"{BASE}/stats", None),
    ("GET", "/readyz", None),
]


async def all_are_503(served: Served) -> None:
    """All at once: whoever waits for the pool must not wait for longer either."""

    async def one(method: str, path: str, body: object) -> None:
        started_at = trio.current_time()
        answer = await served.client.request(method, path, json=body, headers=served.ops.headers)
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable"), path
        assert int(answer.headers["Retry-After"]) > 0
        assert trio.current_time() - started_at < ANSWER_S, path

    async with trio.open_nursery() as nursery:
        for route in ROUTES:
            nursery.start_soon(one, *route)
    assert (await served.client.get("/healthz")).status_code == 200
    assert (await served.client.get(f"{BASE}/webhooks")).status_code == 401


@pytest.fixture
def own_database(own_server: OwnServer) -> str:
    return migrated_template(own_server.url)


async def test_with_the_database_away_or_frozen_every_route_is_503_in_time_and_works_again_when_it_is_back(
    own_server: OwnServer, own_database: str
) -> None:
    with trio.fail_after(55):
        async with open_api(own_database) as served:
            assert (await served.acme.get("/webhooks")).status_code == 200
            own_server.freeze()
            await all_are_503(served)
            own_server.thaw()
            await serves_again(served)
            own_server.kill()
            await all_are_503(served)
            own_server.start()
            await serves_again(served)


async def serves_again(served: Served) -> None:
    while (await served.acme.get("/webhooks")).status_code != 200:
        await trio.sleep(0.05)


async def test_a_connection_lost_amid_a_change_says_that_its_outcome_is_unknown(
    migrated_database: str, api: Served
) -> None:
    answers: list[tuple[str, int, str]] = []

    async def ask(method: str) -> None:
        url, body = f"{BASE}/webhooks", {"endpoint_url": NOWHERE} if method == "POST" else None
        answer = await api.client.request(method, url, json=body, headers=api.acme.headers)
        answers.append((method, answer.status_code, answer.json()["code"]))

    holder = await connect(migrated_database, timeout_s=5, application_name="holder")
    async with holder, trio.open_nursery() as nursery, holder.transaction():
        await holder.execute("LOCK TABLE dealix.subscriptions")
        nursery.start_soon(ask, "POST")
        nursery.start_soon(ask, "GET")
        while await (await holder.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")).fetchone() != (2,):
            await trio.sleep(0.01)
        await holder.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
    assert sorted(answers) == [("GET", 503, "database_unavailable"), ("POST", 503, "outcome_unknown")]
    assert (await api.acme.get("/webhooks")).json()["count"] == 0
