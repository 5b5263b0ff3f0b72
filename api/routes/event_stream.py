"""/events/stream: a customer's events as they become visible, as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Annotated, Final

import msgspec
import trio
from msgspec import UNSET, Meta, UnsetType
from quart import request

from api.errors import Problem, invalid
from api.fields import CustomerIdText, Time
from api.listening import Listener
from api.operation import Call, NoBody, Route, Streamed, route
from api.services import WORK_S, Services
from daemon import clock
from daemon.errors import DatabaseUnavailable
from daemon.ids import CustomerId
from daemon.log import get
from daemon.policy import signing
from daemon.store import event_types, listening
from daemon.store.events import EventRow
from daemon.store.listening import Entry, Position

log = get("api")

HEARTBEAT_S: Final = 15.0
LONGEST_S: Final = 300
"""Then the client comes again, with its key. Connections whose client vanished without a word are gone by then, too."""
RETRY_MS: Final = 500
"""What browsers are told to wait before they come again."""
CHUNK: Final = 10
"""Events that are read and sent at a time: 256 KiB of payload each, at most."""
_CURSOR: Final = re.compile(r"([0-9]{1,18})-([0-9]{1,18})-([0-9]{1,18})")

EventsText = Annotated[
    str,
    Meta(
        max_length=2000,
        pattern=r"^[a-z0-9_.,]+\Z",
        description="Only these types, separated by commas.",
        examples=["deal.won,deal.lost"],
    ),
]
StreamCursorText = Annotated[
    str,
    Meta(
        max_length=60,
        pattern=r"^[0-9-]+\Z",
        description="The last `id` of a stream that broke off.",
        examples=["17-4711-18"],
    ),
]


class StreamQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose events, which of them, from where on, and for how many seconds at most."""

    customer_id: CustomerIdText | UnsetType = UNSET
    events: EventsText | UnsetType = UNSET
    cursor: StreamCursorText | UnsetType = UNSET
    max_s: Annotated[int, Meta(ge=1, le=LONGEST_S)] = LONGEST_S


class StreamedEvent(msgspec.Struct, frozen=True):
    """The `data` of one message, a line of JSON. `body` is the text that endpoints get as the body of their request."""

    event_id: str
    event_type: str
    customer_id: str
    created_at: Time
    body: str


class EventStream:
    """The handler."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def stream_events(self, call: Call[StreamQuery, NoBody]) -> Streamed:
        """Follow a customer's events as they happen.

        Server-sent events: of each event one message, whose `event` is its type and whose `data` is as below; in the
        order in which they became visible, each once. Every message has an `id`. A stream that broke off goes on
        without loss for an hour after, where that `id` comes back as the header Last-Event-ID, or as `cursor`; 410
        after that. Without it a stream begins with what is emitted from now on. A comment comes every 15 seconds, and
        after `max_s` seconds the stream ends: ask again. An event comes half a second after its commit, or when every
        transaction that began before it has ended. Operational events (endpoint.*, delivery.*) are not in it. 429
        where there are too many streams already.
        """
        query = call.query
        customer_id = call.caller.acting_for(query.customer_id or None)
        types = frozenset((query.events or "").split(",")) - {""}
        given = request.headers.get("Last-Event-ID") or query.cursor or None
        position = None if given is None else _position(given)
        self._services.tail.check_room(customer_id)
        async with self._services.pool.connection(WORK_S) as conn:
            if unknown := await event_types.unknown(conn, sorted(types)):
                raise Problem(400, "unknown_event_type", f"There is no event type {unknown[0]!r}.")
            if position is None:
                position = await listening.begin(conn, customer_id)
            elif not await listening.resume(conn, customer_id, position):
                raise Problem(410, "cursor_gone", "What came after this cursor is no longer kept. Begin without one.")
        feed = _Feed(self._services, Listener(customer_id, position), types, call.caller.key_id)
        return Streamed(200, _NOTHING, feed.chunks(position, trio.current_time() + query.max_s))


class _Feed:
    """What one client is sent."""

    def __init__(self, services: Services, listener: Listener, types: frozenset[str], key_id: str) -> None:
        self._services = services
        self._listener = listener
        self._types = types
        self._key_id = key_id

    async def chunks(self, position: Position, ends_at: float) -> AsyncGenerator[bytes]:
        """Messages and comments until the time is up, the key is no longer valid, or the service stops."""
        try:
            with self._services.tail.listening(self._listener):
                yield f"retry: {RETRY_MS}\n".encode() + _mark("ready", position)
                renew_at = trio.current_time() + HEARTBEAT_S
                while not self._listener.ended and trio.current_time() < ends_at:
                    entries: list[Entry] = []
                    with trio.move_on_at(min(renew_at, ends_at)):
                        entries = await self._listener.take()
                    for first in range(0, len(entries), CHUNK):
                        some = entries[first : first + CHUNK]
                        yield await self._messages(position.start, some)
                        position = Position(position.start, some[-1].xid, some[-1].id)
                    if not self._listener.has_entries:
                        position = self._listener.offered_to
                    if trio.current_time() >= renew_at:
                        if not await self._renewed(position):
                            return
                        renew_at = trio.current_time() + HEARTBEAT_S
                        yield _mark("still here", position)
        except (DatabaseUnavailable, Problem) as e:  # the answer has begun: all that can be done is to end it
            log.warning("event_stream.ended", reason=str(e))

    async def _messages(self, start: int, entries: list[Entry]) -> bytes:
        """The messages of `entries`; at least the last one's position, so that nothing is looked at twice."""
        wanted = [entry for entry in entries if not self._types or entry.event_type in self._types]
        async with self._services.pool.connection(WORK_S) as conn:
            found = await listening.events_of(conn, self._listener.customer_id, wanted)
        last = entries[-1]
        messages = [_message(event, _cursor(Position(start, entry.xid, entry.id))) for entry, event in found]
        return b"".join([*messages, _mark("seen", Position(start, last.xid, last.id))])

    async def _renewed(self, position: Position) -> bool:
        async with self._services.pool.connection(WORK_S) as conn:
            return await listening.renew(conn, self._listener.customer_id, self._key_id, position)


_NOTHING: Final = StreamedEvent("", "", "", "", "")


def routes(services: Services) -> list[Route]:
    """The routes of this noun."""
    it = EventStream(services)
    return [
        route(
            "GET",
            "/events/stream",
            it.stream_events,
            query=StreamQuery,
            answers={200: StreamedEvent},
            media_type="text/event-stream",
            problems=(400, 410),
        )
    ]


def _position(cursor: str) -> Position:
    parts = _CURSOR.fullmatch(cursor)
    if parts is None:
        raise invalid("cursor", "is not the id of a message of this stream")
    return Position(*(int(part) for part in parts.groups()))


def _cursor(position: Position) -> str:
    return f"{position.start}-{position.xid}-{position.id}"


def _mark(comment: str, position: Position) -> bytes:
    """A message without data: clients note its id and tell nobody."""
    return f": {comment}\nid: {_cursor(position)}\n\n".encode()


def _message(event: EventRow, cursor: str) -> bytes:
    shown = StreamedEvent(
        event_id=event.id,
        event_type=event.type,
        customer_id=event.customer_id,
        created_at=clock.iso(event.created_at),
        body=signing.envelope(
            event_id=event.id,
            event_type=event.type,
            customer_id=CustomerId(event.customer_id),
            data=event.data,
            created_at=event.created_at,
        ).decode(),
    )
    # JSON has no line ends of its own in one line, whatever the emitter's text has.
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (cursor.encode(), event.type.encode(), msgspec.json.encode(shown))
