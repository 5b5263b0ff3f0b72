"""The whole delivery engine in the test's own process, on a real database: everything but API and signals."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from config.settings import Settings
from daemon.actors.engine import Engine
from daemon.ids import CustomerId, SubscriptionId
from daemon.sealing import KeyRing
from daemon.store import subscriptions
from daemon.store.pool import Pool
from daemon.store.sessions import HOT, dedicated

RING = KeyRing(secrets.token_bytes(32))


def settings_for_tests(tmp_path: Path = Path("/nonexistent"), **groups: dict[str, Any]) -> Settings:
    """Settings with localhost allowed; `groups` override, as in delivery={"timeout_s": 1}."""
    given: dict[str, Any] = {"egress": {"allow_localhost": True}, "data_dir": tmp_path}
    for name, values in groups.items():
        given[name] = given.get(name, {}) | values
    return Settings.model_validate(given)


@dataclass
class Running:
    """A running engine with what a test asks of the database beside it."""

    engine: Engine
    pool: Pool
    url: str
    stop: trio.Event

    async def subscribe(self, endpoint_url: str, *, customer_id: str = "acme", events: list[str] | None = None) -> str:
        """A new subscription's id."""
        return (await self.subscribe_with_secret(endpoint_url, customer_id=customer_id, events=events))[0]

    async def subscribe_with_secret(
        self, endpoint_url: str, *, customer_id: str = "acme", events: list[str] | None = None
    ) -> tuple[SubscriptionId, str]:
        async with self.pool.connection(5) as conn:
            made, secret = await subscriptions.create(
                conn,
                ring=RING,
                customer_id=CustomerId(customer_id),
                endpoint_url=endpoint_url,
                events=events or [],
                description=None,
            )
        return made.id, secret

    async def emit(self, data: Any = None, *, customer_id: str = "acme", event_type: str = "deal.won") -> str:
        """Emit through SQL, as internal code does; the event's id."""
        async with self.pool.connection(5) as conn:
            row = await (
                await conn.execute(
                    "SELECT event_id FROM dealix.emit(%s, %s, %s::text)",
                    (customer_id, event_type, json.dumps(data or {"n": 1})),
                )
            ).fetchone()
        assert row is not None
        return row[0]

    async def rows(self, statement: str, *params: object) -> list[Any]:
        """What a query answers."""
        async with self.pool.connection(5) as conn:
            return await (await conn.execute(statement, params)).fetchall()  # type: ignore[arg-type]

    async def log_rows(self, n: int, *, within_s: float = 10.0) -> list[Any]:
        """The delivery log's rows once there are at least `n`: (attempt, outcome, status_code, error), oldest first."""
        with trio.fail_after(within_s):
            while True:
                rows = await self.rows(
                    "SELECT attempt, outcome, status_code, error FROM dealix.attempts ORDER BY id, attempt"
                )
                if len(rows) >= n:
                    return rows
                await trio.sleep(0.02)

    async def make_due(self) -> None:
        """Let every scheduled retry be due now: waiting for hours is not an option."""
        await self.rows("UPDATE dealix.deliveries SET due = now() WHERE NOT claimed AND due IS NOT NULL RETURNING id")
        async with self.pool.connection(5) as conn:
            await conn.execute("NOTIFY dealix_due")

    async def count(self, table: str = "deliveries") -> int:
        return (await self.rows(f"SELECT count(*) FROM dealix.{table}"))[0][0]  # noqa: S608


@asynccontextmanager
async def running_engine(
    url: str, *, ca_file: Path | None = None, **groups: dict[str, Any]
) -> AsyncGenerator[Running]:
    """An engine at work on `url`; stopped in good order at the end."""
    settings = settings_for_tests(**groups)
    pool = Pool(url, size=8, name="test engine", options=HOT)

    try:
        async with _running(url, settings, pool, ca_file) as running:
            yield running
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await pool.aclose()


@asynccontextmanager
async def _running(url: str, settings: Settings, pool: Pool, ca_file: Path | None) -> AsyncGenerator[Running]:
    engine = Engine(settings, RING, pool, pool, partial(dedicated, url), ca_file=ca_file)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, stop.wait)
        try:
            with trio.fail_after(10):
                await engine.listening()
                while len(engine.ownership.shards) == 0:
                    await trio.sleep(0.01)
            yield Running(engine, pool, url, stop)
        finally:
            stop.set()
