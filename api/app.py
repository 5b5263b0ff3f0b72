"""The application: routes, error answers, access log and the API's document on one Quart-Trio app."""

from __future__ import annotations

from typing import Final

import trio
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.wrappers import Response as WerkzeugResponse

from api import errors, gate, metrics, openapi
from api.bodies import BODY_S, MAX_BODY_BYTES
from api.operation import Route, view_of
from api.portal import site
from api.routes import (
    deliveries,
    event_stream,
    event_types,
    events,
    health,
    portal_links,
    recoveries,
    secrets,
    stats,
    test_fires,
    webhooks,
)
from api.services import Services
from daemon.log import get

log = get("api")

_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""On every answer that does not say otherwise: it belongs to whoever asked, and is what its type says."""


def create_app(services: Services) -> QuartTrio:
    """The whole API. Serve it with `api.server.serve`."""
    app = QuartTrio("api", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.config["BODY_TIMEOUT"] = BODY_S
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # no page of another origin has business here
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.url_map.merge_slashes = False  # a redirect would answer before the key was looked at
    errors.install(app)
    routes = all_routes(services)
    for one in routes:
        app.add_url_rule(one.path, one.name, view_of(one, services), methods=[one.method])
    _look_for_listeners(app, services)
    document = openapi.document(routes)
    _serve_document(app, document)
    metrics.install(app, services)
    _log_access(app)
    site.install(app, services, routes, document)
    gate.install(app, services.guest)
    return app


def all_routes(services: Services) -> list[Route]:
    """Every route of the API, its document apart."""
    nouns = (
        event_types, webhooks, test_fires, secrets, events, event_stream, deliveries, recoveries, stats,
        portal_links, health,
    )  # fmt: skip
    return [one for noun in nouns for one in noun.routes(services)]


def _look_for_listeners(app: QuartTrio, services: Services) -> None:
    async def begin() -> None:
        app.nursery.start_soon(services.tail.run)

    app.before_serving(begin)


def _serve_document(app: QuartTrio, document: bytes) -> None:
    async def openapi_json() -> Response:
        return Response(document, content_type="application/json")

    app.add_url_rule("/openapi.json", "openapi_json", openapi_json, methods=["GET"])


def _log_access(app: QuartTrio) -> None:
    async def note_start() -> None:
        g.started_at = trio.current_time()

    async def finish(response: Response | WerkzeugResponse) -> Response | WerkzeugResponse:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        started_at: float | None = g.get("started_at")
        log.debug(
            "request.answered",
            method=request.method,
            route=request.url_rule.rule if request.url_rule else None,
            status=response.status_code,
            duration_ms=None if started_at is None else round((trio.current_time() - started_at) * 1000, 1),
            key_id=g.get("key_id"),
        )
        return response

    app.before_request(note_start)
    app.after_request(finish)
