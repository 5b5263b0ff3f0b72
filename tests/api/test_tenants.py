"""One customer's key against everything of another: nothing is shown, nothing is changed.

Made from the API's document: a route that is added is swept too, and one that takes a new kind of id fails here until
the sweep knows whose to use.
"""

from __future__ import annotations

import hashlib
from typing import Final

import pytest

from tests.support.api import Served
from tests.support.document import VALID, Operation, operations_of
from tests.support.log import Row, write

TABLES: Final = (
    "subscriptions", "subscription_health", "roster", "events", "event_keys", "outbox", "deliveries", "attempts",
    "daily_stats", "hourly_stats", "event_types", "event_type_details", "recoveries", "test_events", "portal_links",
    "portal_sessions",
)  # fmt: skip


OPS_ONLY: Final = {"revoke_portal_link", "add_event_type", "change_event_type"}
NOBODYS: Final = {"event_type": "deal.won"}
"""Parameters of paths that belong to no customer."""


class Acme:
    """What the victim has, and how its tables stand."""

    def __init__(self, api: Served) -> None:
        self._api = api
        self.ids: dict[str, str] = {}
        self.cursors: dict[str, str] = {}
        self.secrets: list[str] = []

    async def make(self) -> None:
        event = {"customer_id": "acme", "event_type": "deal.won", "payload": {"mark": "only-acme"}}
        made = await self._api.acme.subscribe(description="only-acme")
        self.secrets += [made["secret"], (await self._api.acme.subscribe())["secret"]]
        self.ids["subscription_id"] = made["id"]
        link = await self._api.ops.post("/portal-links", {"customer_id": "acme"})
        self.ids["link_id"] = link.json()["id"]
        self.secrets.append(link.json()["url"].rpartition("/")[2])
        self.ids["event_id"] = (await self._api.ops.post("/events/emit", event)).json()["event_id"]
        await self._api.ops.post("/events/emit", event | {"event_id": "order-7"})
        async with self._api.pool.connection(10) as conn:
            rows = [Row(made["id"], self.ids["event_id"], outcome="failed") for _ in range(2)]
            (*_, self.ids["attempt_id"]) = await write(conn, rows)
        for one in (made, await self._api.acme.subscribe()):
            recovery = {"since": "2026-01-31T08:00:00Z", "status": "all"}
            begun = await self._api.acme.post(f"/webhooks/{one['id']}/recover", recovery)
            self.ids["recovery_id"] = begun.json()["id"]
        for path in ("/webhooks", "/deliveries", "/recoveries"):
            self.cursors[path] = (await self._api.acme.get(path, limit=1)).json()["next_cursor"]

    def marks(self) -> list[str]:
        """What may never be in an answer to somebody else."""
        return ["acme", "order-7", *self.ids.values(), *self.secrets]

    async def state(self) -> dict[str, str]:
        """A digest of each table."""
        found: dict[str, str] = {}
        for table in TABLES:
            rows = await self._api.rows(f"SELECT t::text FROM dealix.{table} t ORDER BY 1")
            found[table] = hashlib.sha256(repr(rows).encode()).hexdigest()
        return found


async def attack(api: Served, operation: Operation, acme: Acme) -> int:
    """Ask as globex for what is acme's, in every way that the operation has; how many requests that were."""
    unknown = set(operation.parameters("path")) - set(acme.ids) - set(NOBODYS)
    assert not unknown, f"whose {unknown}?"
    url = operation.url_of(**acme.ids, **NOBODYS)
    queries: list[dict[str, str]] = [{}]
    queries += [{name: acme.ids[name]} for name in operation.parameters("query") if name in acme.ids]
    if "customer_id" in operation.parameters("query"):
        queries += [query | {"customer_id": "acme"} for query in queries]
    if "cursor" in operation.parameters("query"):
        queries += [{"cursor": cursor} for cursor in acme.cursors.values()]
    body = VALID[operation.body_schema] if operation.body_schema else None
    for query in queries:
        answer = await api.client.request(operation.method, url, params=query, json=body, headers=api.globex.headers)
        about = f"{operation.name} {query}: {answer.status_code} {answer.text[:200]}"
        if operation.open_to_anyone:
            continue
        if operation.name in OPS_ONLY or "customer_id" in query or (body and "customer_id" in str(body)):
            assert answer.status_code == 403, about
        elif "cursor" in query:
            assert answer.status_code == 422, about
        elif operation.parameters("path"):
            assert answer.status_code == 404, about
        else:
            assert answer.status_code == 200, about
            for mark in acme.marks():
                assert mark not in answer.text, about
    return len(queries)


@pytest.mark.threat("N83", "N85-N86")
async def test_a_key_of_one_customer_sees_and_changes_nothing_of_another(api: Served) -> None:
    acme = Acme(api)
    await acme.make()
    before = await acme.state()
    swept: set[str] = set()
    for operation in await operations_of(api):
        assert await attack(api, operation, acme) > 0
        swept.add(operation.name)
        assert await acme.state() == before, operation.name
    assert {"change_webhook", "delete_webhook", "rotate_secret", "test_webhook", "retry_delivery", "get_event"} <= swept
    assert {"recover_webhook", "get_recovery", "cancel_recovery"} <= swept
    own = await api.acme.get(f"/deliveries/{acme.ids['attempt_id']}")
    assert own.status_code == 200  # the ids that were tried are good ones


@pytest.mark.threat("N83")
async def test_another_customers_object_looks_like_none_at_all(api: Served) -> None:
    acme = Acme(api)
    await acme.make()
    for operation in await operations_of(api):
        if operation.open_to_anyone or not operation.parameters("path"):
            continue
        body = VALID[operation.body_schema] if operation.body_schema else None
        answers = [
            await api.client.request(operation.method, url, json=body, headers=api.globex.headers)
            for url in (operation.url_of(**acme.ids, **NOBODYS), operation.url)
        ]
        assert answers[0].content == answers[1].content
        assert answers[0].headers["content-length"] == answers[1].headers["content-length"]


async def test_an_own_id_that_two_customers_use_shows_each_its_own_event(api: Served) -> None:
    for customer_id in ("acme", "globex"):
        event = {"customer_id": customer_id, "event_type": "deal.won", "event_id": "order-7"}
        await api.ops.post("/events/emit", event | {"payload": {"of": customer_id}})
    for asker, customer_id in ((api.acme, "acme"), (api.globex, "globex")):
        assert (await asker.get("/events/order-7")).json()["data"] == {"of": customer_id}
        assert (await api.ops.get("/events/order-7", customer_id=customer_id)).json()["data"] == {"of": customer_id}
