"""GET /event-types: what can be subscribed to, and how to verify what comes."""

from __future__ import annotations

import msgspec

from api.operation import Answer, Call, NoBody, NoQuery, Route, route
from api.services import PROBE_S, Services
from api.verification import HEADERS_EMITTED, SIGNATURE_FORMAT, VERIFICATION_DOC
from daemon.store import event_types


class EventTypeShown(msgspec.Struct, frozen=True):
    """One event type."""

    type: str
    description: str


class EventTypeList(msgspec.Struct, frozen=True):
    """Every event type, and what receivers need to know."""

    count: int
    events: list[EventTypeShown]
    signature_format: str
    headers_emitted: list[str]
    verification_doc: str


def routes(services: Services) -> list[Route]:
    """The routes of this noun."""

    async def list_event_types(_: Call[NoQuery, NoBody]) -> Answer:
        """List the event types.

        Needs no key. Also tells which headers a webhook carries and how to verify its signature.
        """
        async with services.pool.connection(PROBE_S) as conn:
            known = await event_types.all_types(conn)
        return Answer(
            200,
            EventTypeList(
                count=len(known),
                events=[EventTypeShown(one.type, one.description) for one in known],
                signature_format=SIGNATURE_FORMAT,
                headers_emitted=HEADERS_EMITTED,
                verification_doc=VERIFICATION_DOC,
            ),
        )

    return [
        route("GET", "/event-types", list_event_types, who="anyone", answers={200: EventTypeList}, problems=(503,)),
    ]
