"""GET /healthz and /readyz, at the root: is the process alive, and can it do its work."""

from __future__ import annotations

from typing import Literal

import msgspec

from api.errors import unavailable
from api.operation import Answer, Call, NoBody, Route, route
from api.services import FIRST_S, Services
from daemon.errors import SchemaMismatch
from daemon.store.migrate import check_version


class AnyQuery(msgspec.Struct, frozen=True):
    """Probes may add what they like, against caches."""


class Health(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(msgspec.Struct, frozen=True):
    """Database, schema and LISTEN connection are fine. `shards` of the 64 are this process' own."""

    database: Literal["ok"]
    database_schema: Literal["ok"]
    listening: bool
    shards: int
    status: Literal["ready"] = "ready"


def routes(services: Services) -> list[Route]:
    """The routes of this noun."""

    async def get_healthz(_: Call[AnyQuery, NoBody]) -> Answer:
        """Tell whether the process lives.

        Asks nothing of the database: a database that is away is no reason to restart this process.
        """
        return Answer(200, Health())

    async def get_readyz(_: Call[AnyQuery, NoBody]) -> Answer:
        """Tell whether the process can do its work.

        Ready means: the database answers, its schema is this program's or a newer one, and the LISTEN connection is up.
        """
        async with services.pool.connection(FIRST_S) as conn:
            try:
                await check_version(conn, at_work=True)
            except SchemaMismatch as e:
                raise unavailable("schema_mismatch", f"{e}.") from e
        state = services.readiness()
        if not state.listening:
            raise unavailable("not_listening", "The connection that hears of new events is not up.")
        return Answer(200, Ready(database="ok", database_schema="ok", listening=True, shards=state.shards))

    return [
        route("GET", "/healthz", get_healthz, query=AnyQuery, who="anyone", base="", answers={200: Health}),
        route(
            "GET", "/readyz", get_readyz, query=AnyQuery, who="anyone", base="", answers={200: Ready}, problems=(503,)
        ),
    ]
