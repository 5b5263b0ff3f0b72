"""The API as its users meet it: a real server on loopback, on a real database, with keys to knock with."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import trio
from quart_trio import QuartTrio

from api.app import create_app
from api.connection import Limits
from api.listening import Tail
from api.server import listen, serve
from api.services import Services
from daemon.actors.engine import Engine
from daemon.ids import CustomerId
from daemon.sender.endpoint import Sender
from daemon.store import api_keys
from daemon.store.pool import Pool
from daemon.store.sessions import HOT, Database
from daemon.tracing import Tracer
from tests.support.engine import RING, settings_for_tests

BASE = "/api/v1/ecosystem"
NOWHERE = "http://127.0.0.1:9/hook"
"""An endpoint that may be registered in tests, and where nobody listens."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Requests below the API's base, with one key or another header."""

    client: httpx.AsyncClient
    headers: dict[str, str]

    async def get(self, path: str, **query: str | int | bool) -> httpx.Response:
        return await self.client.get(BASE + path, params=query, headers=self.headers)

    async def post(self, path: str, body: object = None, **query: str | int | bool) -> httpx.Response:
        return await self.client.post(BASE + path, json=body, params=query, headers=self.headers)

    async def patch(self, path: str, body: object) -> httpx.Response:
        return await self.client.patch(BASE + path, json=body, headers=self.headers)

    async def delete(self, path: str) -> httpx.Response:
        return await self.client.delete(BASE + path, headers=self.headers)

    async def send(
        self, method: str, path: str, content: bytes, content_type: str | None = "application/json"
    ) -> httpx.Response:
        """Any bytes as the body."""
        headers = self.headers | ({} if content_type is None else {"Content-Type": content_type})
        return await self.client.request(method, BASE + path, content=content, headers=headers)

    async def subscribe(self, endpoint_url: str = NOWHERE, **fields: object) -> dict[str, Any]:
        """A new subscription, as its creation answers it."""
        answer = await self.post("/webhooks", {"endpoint_url": endpoint_url} | fields)
        assert answer.status_code == 201, answer.text
        return answer.json()


@dataclass(slots=True)
class Served:
    """A running API. Its keys: one for ops, one each for the customers acme and globex. `client` itself sends none."""

    url: str
    client: httpx.AsyncClient
    app: QuartTrio
    pool: Pool
    engine: Engine
    services: Services
    keys: dict[str, str]
    stop: trio.Event

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def ops(self) -> Asker:
        return self.as_("ops")

    @property
    def acme(self) -> Asker:
        return self.as_("acme")

    @property
    def globex(self) -> Asker:
        return self.as_("globex")

    def as_(self, who: str) -> Asker:
        return self.with_header(f"Bearer {self.keys[who]}")

    def with_header(self, authorization: str) -> Asker:
        return Asker(self.client, {"Authorization": authorization})

    async def rows(self, statement: str, **params: object) -> list[Any]:
        """What a query answers."""
        async with self.pool.connection(10) as conn:
            return await (await conn.execute(statement, params)).fetchall()  # type: ignore[arg-type]

    async def run(self, statement: str, **params: object) -> None:
        """A statement without an answer."""
        async with self.pool.connection(10) as conn:
            await conn.execute(statement, params)  # type: ignore[arg-type]


@asynccontextmanager
async def open_api(
    url: str,
    *,
    working: bool = False,
    limits: Limits = Limits(),  # noqa: B008 frozen
    sender: Sender | None = None,
    tracer: Tracer | None = None,
    **groups: dict[str, Any],
) -> AsyncGenerator[Served]:
    """The API on the database `url`, with an engine behind it that delivers if it is `working`.

    `sender` is for registrations, the engine's own unless told. `groups` are settings, as in delivery={"timeout_s": 1}.
    """
    settings = settings_for_tests(Path("/nonexistent"), **groups)
    pool, engine_pool = Pool(url, size=6, name="test api"), Pool(url, size=6, name="test engine", options=HOT)
    database = Database(url, url)
    open_janitor = partial(database.session, "test janitor")
    engine = Engine(settings, RING, engine_pool, pool, database.owner, open_janitor=open_janitor, tracer=tracer)
    services = Services(
        settings=settings,
        pool=pool,
        ring=RING,
        sender=sender or engine.sender,
        test_fire=engine.test_fire.fire,
        readiness=engine.readiness,
        vitals=engine.vitals,
        tail=Tail(pool, stop := trio.Event()),
        guest=engine.lanes.gate.narrowed,
        tracer=tracer,
    )
    app = create_app(services)
    try:
        keys = await _make_keys(pool)
        async with trio.open_nursery() as nursery:
            if working:
                nursery.start_soon(engine.run, stop.wait)
                await engine.listening()
            (served_at,) = await nursery.start(
                partial(serve, app, [listen("127.0.0.1:0")], stop=stop, grace_s=2, limits=limits)
            )
            async with httpx.AsyncClient(base_url=served_at, timeout=20, trust_env=False) as client:
                try:
                    yield Served(served_at, client, app, pool, engine, services, keys, stop)
                finally:
                    stop.set()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            for one in (pool, engine_pool):
                await one.aclose()


async def _make_keys(pool: Pool) -> dict[str, str]:
    owners = {"ops": None, "acme": CustomerId("acme"), "globex": CustomerId("globex")}
    async with pool.connection(10) as conn:
        return {name: (await api_keys.create(conn, owner))[1] for name, owner in owners.items()}
