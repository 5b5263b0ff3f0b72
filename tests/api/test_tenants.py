"""One customer's key against everything of another: nothing is shown, nothing is changed.

Made from the API's document: a route that is added is swept too, and one that takes a new kind of id fails here until
the sweep knows whose to use.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import pytest

from tests.support.api import Served
from tests.support.document import VALID, Operation, operations_of
from tests.support.log import Row, write

OPS_ONLY: Final = {"revoke_portal_link", "add_event_type", "change_event_type"}
NOBODYS: Final = {"event_type": "deal.won"}
"""Parameters of paths that belong to no customer."""
HARMLESS: Final = {
    "customer_id", "cursor",  # tried by themselves, see `queries` and `bodies`
    "dry_run", "enabled_only", "event_type", "events", "failed_only", "limit", "period_days", "since", "status",
    "success_only", "until", "wait_s", "max_s",
    "description", "enabled", "endpoint_url", "event_id", "overlap_seconds", "payload",
    "propagate_trace_context",
    "deprecated", "schema", "enforced", "example", "type",
}  # fmt: skip
"""Parameters of queries and fields of bodies that name no object. An `event_id` in a body is the emitter's own."""
CHANGING: Final[dict[str, dict[str, Any]]] = {
    "WebhookChanges": {"enabled": False, "description": "stolen", "events": ["deal.won"]},
    "Rotation": {"overlap_seconds": 0},
}
"""Bodies that would leave a trace where `VALID` has one that changes nothing."""
UNTOUCHED: Final = {"api_keys", "schema_migrations", "listeners"}
"""Tables that are not the victim's: a key's last use is noted, and who has listened."""


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
        tables = await self._api.rows(
            "SELECT relname FROM pg_class WHERE relnamespace = 'dealix'::regnamespace AND relkind IN ('r', 'p') "
            "AND NOT relispartition ORDER BY 1"
        )
        for table in {name for (name,) in tables} - UNTOUCHED:
            rows = await self._api.rows(f"SELECT t::text FROM dealix.{table} t ORDER BY 1")
            found[table] = hashlib.sha256(repr(rows).encode()).hexdigest()
        return found


def queries(operation: Operation, acme: Acme) -> list[dict[str, str]]:
    """Every way to name something of acme's in the query."""
    found: list[dict[str, str]] = [{"max_s": "1"} if "max_s" in operation.parameters("query") else {}]
    found += [{name: acme.ids[name]} for name in operation.parameters("query") if name in acme.ids]
    if "customer_id" in operation.parameters("query"):
        found += [query | {"customer_id": "acme"} for query in found]
    if "cursor" in operation.parameters("query"):
        found += [{"cursor": cursor} for cursor in acme.cursors.values()]
    return found


def bodies(operation: Operation, acme: Acme) -> list[dict[str, Any] | None]:
    """A good body that would change something, and the same with each id of acme's that it can carry."""
    schema = operation.body_schema
    if schema is None:
        return [None]
    good = VALID[schema] | CHANGING.get(schema, {})
    return [good, *(good | {name: acme.ids[name]} for name in operation.fields() if name in acme.ids)]


def check_that_all_is_known(operation: Operation, acme: Acme) -> None:
    """A new parameter or field has to be said whose it is before it is swept."""
    unknown = set(operation.parameters("path")) - set(acme.ids) - set(NOBODYS)
    unknown |= {*operation.parameters("query"), *operation.fields()} - set(acme.ids) - HARMLESS
    assert not unknown, f"{operation.name}: whose are {sorted(unknown)}?"


async def attack(api: Served, operation: Operation, acme: Acme) -> int:
    """Ask as globex for what is acme's, in every way that the operation has; how many requests that were."""
    check_that_all_is_known(operation, acme)
    url = operation.url_of(**acme.ids, **NOBODYS)
    asks = [(query, body) for query in queries(operation, acme) for body in bodies(operation, acme)]
    for query, body in asks:
        answer = await api.client.request(operation.method, url, params=query, json=body, headers=api.globex.headers)
        about = f"{operation.name} {query} {body}: {answer.status_code} {answer.text[:200]}"
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
    return len(asks)


@pytest.mark.threat("N83", "N85-N86")
async def test_a_key_of_one_customer_sees_and_changes_nothing_of_another(api: Served) -> None:
    acme = Acme(api)
    await acme.make()
    before = await acme.state()
    swept: set[str] = set()
    named: set[str] = set()
    for operation in await operations_of(api):
        named |= {*operation.parameters("query"), *operation.fields()}
        assert await attack(api, operation, acme) > 0
        swept.add(operation.name)
        assert await acme.state() == before, operation.name
    assert {"change_webhook", "delete_webhook", "rotate_secret", "test_webhook", "retry_delivery", "get_event"} <= swept
    assert {"recover_webhook", "get_recovery", "cancel_recovery"} <= swept
    assert named >= HARMLESS
    own = await api.acme.get(f"/deliveries/{acme.ids['attempt_id']}")
    assert own.status_code == 200  # the ids that were tried are good ones


async def test_the_requests_of_the_sweep_do_what_they_say_with_the_owners_key(api: Served) -> None:
    """Else a sweep without a trace would prove nothing."""
    acme = Acme(api)
    await acme.make()
    of_objects = [one for one in await operations_of(api) if set(one.parameters("path")) & set(acme.ids)]
    order = ["GET", "PATCH", "POST", "DELETE"]
    for operation in sorted(of_objects, key=lambda one: order.index(one.method)):
        before = await acme.state()
        asker = api.ops if operation.name in OPS_ONLY else api.acme
        body = bodies(operation, acme)[0]
        url = operation.url_of(**acme.ids, **NOBODYS)
        answer = await api.client.request(operation.method, url, json=body, headers=asker.headers)
        about = f"{operation.name}: {answer.status_code} {answer.text[:200]}"
        assert answer.status_code < 300 or (operation.method == "POST" and answer.status_code == 409), about
        if operation.method in {"PATCH", "DELETE"}:
            assert await acme.state() != before, about


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
