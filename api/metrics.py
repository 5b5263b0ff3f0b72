"""GET /metrics, at the root: to ops keys, and to anyone on an address of its own (`api.metrics_bind`)."""

from __future__ import annotations

from typing import Final

import trio
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from quart import Response, g, request
from quart_trio import QuartTrio

from api import errors, gate
from api.auth import authenticate
from api.metric_families import Facts, Families
from api.services import Services
from daemon.errors import DatabaseUnavailable, SchemaMismatch
from daemon.log import get
from daemon.store import ops
from daemon.store.migrate import check_version

log = get("api")

PATH: Final = "/metrics"
FRESH_S: Final = 5.0
"""What the database was asked is told again for so long, its silence too: however often and by whomever we are scraped,
on each address the statements run once in five seconds."""
READ_S: Final = 3.0
"""A scrape may take ten seconds unless Prometheus is told otherwise."""
CONNECTIONS: Final = 8
"""Clients at once on the address of its own."""


class Metrics:
    """Reads the daemon's own figures at once and the database's at most every `FRESH_S`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._facts: Facts | None = None
        self._stale_at = 0.0
        self._reading = trio.Lock()

    async def answer(self) -> Response:
        """All of it, in Prometheus' text format. Without the database its part is left out, and `dealix_ready` is 0."""
        facts = await self._read()
        families = Families(self._services.vitals(), facts, self._services.settings.database.pool_size)
        return Response(generate_latest(families), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def _read(self) -> Facts | None:
        async with self._reading:  # whoever waits here finds what was read meanwhile
            if trio.current_time() >= self._stale_at:
                self._facts = await self._ask()
                self._stale_at = trio.current_time() + FRESH_S
        return self._facts

    async def _ask(self) -> Facts | None:
        try:
            async with self._services.pool.connection(READ_S) as conn:
                await check_version(conn, at_work=True)
                return Facts(
                    queues=await ops.queues(conn),
                    outbox_age_s=await ops.outbox_age_s(conn),
                    standings=await ops.standings(conn),
                    server=await ops.server(conn),
                )
        except (DatabaseUnavailable, SchemaMismatch) as e:
            log.warning("metrics.without_database", reason=str(e))
            return None


def install(app: QuartTrio, services: Services) -> None:
    """Serve it to ops keys."""
    metrics = Metrics(services)

    async def get_metrics() -> Response:
        caller = await authenticate(services, request)
        g.key_id = caller.key_id  # for the access log
        caller.require_ops()
        return await metrics.answer()

    app.add_url_rule(PATH, get_metrics.__name__, get_metrics, methods=["GET"])


def create_app(services: Services) -> QuartTrio:
    """An application that has nothing else, and asks for no key. What it tells names no customer and no endpoint."""
    app = QuartTrio("metrics", static_folder=None)
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    errors.install(app)
    app.add_url_rule(PATH, "get_metrics", Metrics(services).answer, methods=["GET"])
    gate.install(app, services.guest)
    return app
