"""The event catalogue: what can be subscribed to, what it looks like when it comes, and how to verify it."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import groupby
from typing import Final

from quart import Response

from api.portal.frame import Frame
from api.portal.pages import pretty
from api.portal.visit import Visit
from api.routes.event_types import EventTypeList, EventTypeShown
from api.verification import examples
from daemon.ids import CustomerId, EventId
from daemon.policy import signing

HOME: Final = "/portal/catalogue"
_EXAMPLE_AT: Final = datetime(2026, 1, 31, 8, tzinfo=UTC)


class Catalogue:
    """The views."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    async def catalogue(self, visitor: Visit) -> Response:
        """All of it on one page, to be searched by the browser's own search."""
        listed = await self._frame.ask(visitor, "list_event_types", EventTypeList)
        groups = [(noun, list(types)) for noun, types in groupby(listed.events, lambda it: it.type.partition(".")[0])]
        return self._frame.page(
            visitor,
            "catalogue.html",
            groups=groups,
            headers=listed.headers_emitted,
            signature_format=listed.signature_format,
            bodies={one.type: _envelope(one) for one in listed.events},
            verification=examples(),
        )


def _envelope(it: EventTypeShown) -> str:
    """A request's body as an event of this type has it."""
    body = signing.envelope(
        event_id=EventId("evt_0199c2d4e5f6a1b2c3d4e5f6"),
        event_type=it.type,
        customer_id=CustomerId("acme"),
        data="{}" if it.example is None else bytes(it.example).decode(),
        created_at=_EXAMPLE_AT,
    )
    return pretty(body.decode())


def install(frame: Frame) -> None:
    """Their addresses."""
    frame.show(HOME, Catalogue(frame).catalogue)
