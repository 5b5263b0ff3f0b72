"""/portal-links: let one customer's people into the portal for an hour, and put them out again."""

from __future__ import annotations

from typing import Literal

import msgspec
from quart import request

from api.errors import not_found
from api.fields import CustomerIdText, Time
from api.operation import Answer, Call, NoBody, NoQuery, Route, route
from api.services import WORK_S, Services
from daemon import clock, ids
from daemon.ids import CustomerId
from daemon.store import portal


class NewPortalLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose portal the link opens."""

    customer_id: CustomerIdText


class PortalLink(msgspec.Struct, frozen=True):
    """A link to one customer's portal. Whoever has it is in: send it to that customer alone."""

    id: str
    customer_id: str
    url: str
    expires_at: Time


class RevokedPortalLink(msgspec.Struct, frozen=True):
    """A link that no longer works; browsers that came in by it are out."""

    id: str
    revoked: Literal[True] = True


def routes(services: Services) -> list[Route]:
    """The routes of this noun."""

    async def create_portal_link(call: Call[NoQuery, NewPortalLink]) -> Answer:
        """Make a link to a customer's portal.

        It works for an hour, as often as it is opened, and so do the browsers that came in by it. The token in it is
        stored as a digest only and cannot be had again. Behind a TLS proxy set `api.public_url`, which it begins with.
        """
        async with services.pool.connection(WORK_S) as conn:
            link, token = await portal.create_link(conn, CustomerId(call.body.customer_id))
        origin = services.settings.api.public_url or f"{request.scheme}://{request.host}"
        return Answer(
            201, PortalLink(link.id, link.customer_id, f"{origin}/portal/enter/{token}", clock.iso(link.expires_at))
        )

    async def revoke_portal_link(call: Call[NoQuery, NoBody]) -> Answer:
        """End a link, and every session that began by it, from the next request on."""
        link_id = call.path["link_id"]
        async with services.pool.connection(WORK_S) as conn:
            if not ids.LINK_ID.fullmatch(link_id) or not await portal.revoke_link(conn, link_id):
                raise not_found("portal link")
        return Answer(200, RevokedPortalLink(link_id))

    return [
        route("POST", "/portal-links", create_portal_link, body=NewPortalLink, answers={201: PortalLink}, who="ops"),
        route(
            "DELETE",
            "/portal-links/<link_id>",
            revoke_portal_link,
            answers={200: RevokedPortalLink},
            problems=(404,),
            who="ops",
        ),
    ]
