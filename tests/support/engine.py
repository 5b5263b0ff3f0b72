"""The whole delivery engine in the test's own process, on a real database: everything but API and signals."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, LiteralString, cast

import trio

from config.settings import Settings
from daemon.actors.engine import Engine
from daemon.ids import CustomerId, SubscriptionId
from daemon.sealing import KeyRing
from daemon.store import subscriptions
from daemon.store.connection import Connection
from daemon.store.pool import Pool
from daemon.store.sessions import HOT, Database, dedicated
from daemon.tracing import Tracer

RING = KeyRing(secrets.token_bytes(32))
OWNER = "dealix owner"
"""The application_name of an engine's dedicated session."""
POOL = "test engine"
"""That of its pool, which the test asks with too."""


def settings_for_tests(tmp_path: Path = Path("/nonexistent"), **groups: Mapping[str, object]) -> Settings:
    """Settings with localhost allowed; `groups` override, as in delivery={"timeout_s": 1}."""
    egress = {"allow_localhost": True} | dict(groups.pop("egress", {}))
    return Settings.model_validate({"egress": egress, "data_dir": tmp_path} | groups)


@dataclass(frozen=True)
class Logged:
    """A row of the delivery log."""

    attempt: int
    outcome: str
    status_code: int | None
    error: str | None
    success: bool
    event_id: str
    subscription_id: str
    endpoint_url: str
    created_at: datetime
    duration_ms: int | None
    signature: str | None
    response_body: str | None
    response_truncated: bool


@dataclass
class Running:
    """A running engine with what a test asks of the database beside it.

    `sessions` are its dedicated ones, the present one last; `stop` lets it stop, which the end of the block does too.
    """

    engine: Engine
    pool: Pool
    url: str
    stop: trio.Event
    sessions: list[Connection]

    # -- doing ------------------------------------------------------------------------------------------------------

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

    async def emit(self, data: object = None, *, customer_id: str = "acme", event_type: str = "deal.won") -> str:
        """Emit through SQL, as internal code does; the event's id."""
        rows = await self.rows(
            "SELECT event_id FROM dealix.emit(%s, %s, %s::text)",
            customer_id,
            event_type,
            json.dumps(data or {"n": 1}),
        )
        return rows[0][0]

    async def emit_many(self, count: int, *, customer_id: str = "acme") -> list[str]:
        """Emit so many events in one transaction; their ids."""
        rows = await self.rows(
            "SELECT e.event_id FROM generate_series(1, %s) AS n "
            "CROSS JOIN LATERAL dealix.emit(%s, 'deal.won', '{\"n\": ' || n || '}') AS e",
            count,
            customer_id,
        )
        return [row[0] for row in rows]

    async def change(self, subscription_id: str, changes: subscriptions.Changes) -> subscriptions.Subscription:
        """What PATCH does."""
        async with self.pool.connection(5) as conn:
            changed = await subscriptions.update(conn, SubscriptionId(subscription_id), changes)
        assert changed is not None
        return changed

    async def delete(self, subscription_id: str) -> None:
        async with self.pool.connection(5) as conn:
            assert await subscriptions.delete(conn, SubscriptionId(subscription_id))

    async def make_due(self) -> None:
        """Let every scheduled retry be due now: waiting for hours is not an option."""
        await self.rows("UPDATE dealix.deliveries SET due = now() WHERE NOT claimed AND due IS NOT NULL RETURNING id")
        async with self.pool.connection(5) as conn:
            await conn.execute("NOTIFY dealix_due")

    async def share(self, shards: int) -> None:
        """Wait until this engine owns so many shards."""
        while len(self.engine.ownership.shards) != shards:
            await trio.sleep(0.02)

    async def terminate(self, *names: str) -> int:
        """Terminate every session of these application names but the one that asks; how many there were."""
        rows = await self.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = ANY (%s) AND datname = current_database() AND pid <> pg_backend_pid()",
            list(names),
        )
        return len(rows)

    # -- looking ----------------------------------------------------------------------------------------------------

    async def rows(self, statement: LiteralString, *params: object) -> list[Any]:
        """What a query answers."""
        async with self.pool.connection(5) as conn:
            return await (await conn.execute(statement, params)).fetchall()

    async def until(self, expected: object, statement: LiteralString, *params: object, within_s: float = 10.0) -> None:
        """Wait until the first column of the query's first row is `expected`."""
        seen: object = None
        with trio.move_on_after(within_s):
            while True:
                rows = await self.rows(statement, *params)
                seen = rows[0][0] if rows else None
                if seen == expected:
                    return
                await trio.sleep(0.02)
        raise AssertionError(f"still {seen!r}, not {expected!r}, after {within_s:g} s: {statement}")

    async def subscription(self, subscription_id: str) -> subscriptions.Subscription:
        async with self.pool.connection(5) as conn:
            found = await subscriptions.get(conn, SubscriptionId(subscription_id))
        assert found is not None
        return found

    async def log_rows(self, n: int, *, within_s: float = 10.0) -> list[Any]:
        """The delivery log's rows once there are at least `n`: (attempt, outcome, status_code, error), oldest first."""
        return [(r.attempt, r.outcome, r.status_code, r.error) for r in await self.logged(n, within_s=within_s)]

    async def logged(self, n: int, *, within_s: float = 10.0) -> list[Logged]:
        """As `log_rows`, with more columns."""
        with trio.fail_after(within_s):
            while True:
                rows = await self.rows(
                    "SELECT attempt, outcome, status_code, error, success, event_id, subscription_id, endpoint_url, "
                    "created_at, duration_ms, signature, response_body, response_truncated "
                    "FROM dealix.attempts ORDER BY id, attempt"
                )
                if len(rows) >= n:
                    return [Logged(*row) for row in rows]
                await trio.sleep(0.02)

    async def count(self, table: str = "deliveries") -> int:
        return (await self.rows(cast("LiteralString", f"SELECT count(*) FROM dealix.{table}")))[0][0]


@asynccontextmanager
async def running_engine(
    url: str, *, ca_file: Path | None = None, tracer: Tracer | None = None, **groups: Mapping[str, object]
) -> AsyncGenerator[Running]:
    """An engine at work on `url`; stopped in good order at the end."""
    settings = settings_for_tests(Path("/nonexistent"), **groups)
    pool = Pool(url, size=8, name=POOL, options=HOT)
    try:
        async with _running(url, settings, pool, ca_file, tracer) as running:
            yield running
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await pool.aclose()


@asynccontextmanager
async def _running(
    url: str, settings: Settings, pool: Pool, ca_file: Path | None, tracer: Tracer | None
) -> AsyncGenerator[Running]:
    sessions: list[Connection] = []

    @asynccontextmanager
    async def open_session() -> AsyncGenerator[Connection]:
        async with dedicated(url) as conn:
            sessions.append(conn)
            yield conn

    open_janitor = partial(Database(url, url).session, "test janitor")
    engine = Engine(settings, RING, pool, pool, open_session, open_janitor=open_janitor, ca_file=ca_file, tracer=tracer)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, stop.wait)
        try:
            with trio.fail_after(10):
                await engine.listening()
                while not engine.ownership.shards:
                    await trio.sleep(0.01)
            yield Running(engine, pool, url, stop, sessions)
        finally:
            stop.set()
