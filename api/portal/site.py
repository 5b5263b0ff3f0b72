"""All pages on one application."""

from __future__ import annotations

from collections.abc import Sequence

from quart_trio import QuartTrio

from api.operation import Route
from api.portal import catalogue, deliveries, doors, endpoints, frame, ops, overview, recoveries, reference
from api.portal.operations import Operations
from api.services import Services


def install(app: QuartTrio, services: Services, routes: Sequence[Route], document: bytes) -> None:
    """Serve the pages, which call `routes`, the API's own, and set out its `document`."""
    made = frame.install(app, services, Operations(routes))
    for pages in (doors, overview, endpoints, deliveries, recoveries, catalogue, ops):
        pages.install(made)
    reference.install(made, document)
