"""/events: emitting over HTTP, and looking an event up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.bodies import check_payload
from api.errors import FieldError, Problem, not_found
from api.fields import CustomerIdText, EventIdText, EventTypeText, Time
from api.operation import BASE, Answer, B, Call, NoBody, NoQuery, Q, Route, route
from api.payload_schemas import Enforcement
from api.services import WORK_S, Services
from api.waiting import first_attempts
from daemon import clock, ids
from daemon.errors import EmitRejected
from daemon.ids import CustomerId
from daemon.span import Facts
from daemon.store import emit, events
from daemon.store.emit import NewEvent
from daemon.store.events import Duty, EventRow, HeldBy, State

Payload = Annotated[
    msgspec.Raw,
    Meta(
        description="At most 256 KiB, nested at most 100 deep, without \\u0000. Sent on as it came, byte for byte.",
        extra_json_schema={"type": "object"},
    ),
]


class EventToEmit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that happened for a customer. With an own event_id, emitting it again makes no second event."""

    customer_id: CustomerIdText
    event_type: EventTypeText
    payload: Payload | UnsetType = UNSET
    event_id: EventIdText | UnsetType = UNSET


class EmitQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether to wait for the first attempts."""

    wait_s: Annotated[int, Meta(ge=1, le=30)] | UnsetType = UNSET


class EmittedEvent(msgspec.Struct, frozen=True):
    """An event, and how the first attempts of its deliveries went so far."""

    event_id: str
    event_type: str
    customer_id: str
    matched: int
    delivered: int
    failed: int
    pending: int


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Events that are emitted together or not at all."""

    events: Annotated[list[EventToEmit], Meta(min_length=1, max_length=1000)]


class BatchItem(msgspec.Struct, frozen=True):
    """One event of a batch."""

    event_id: str
    matched: int


class EmittedBatch(msgspec.Struct, frozen=True):
    """All of them are emitted, in the order given."""

    count: int
    matched: int
    events: list[BatchItem]


class EventQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose event: emitters' own ids are unique for each customer only."""

    customer_id: CustomerIdText | UnsetType = UNSET


class EventDelivery(msgspec.Struct, frozen=True):
    """How far one subscription's delivery is. `held_by` is why it is held, and null in every other state."""

    subscription_id: str
    endpoint_url: str | None
    state: State
    held_by: HeldBy | None
    attempts: int
    next_attempt_at: Time | None
    last_attempt_id: str | None
    last_attempt_at: Time | None
    last_status_code: int | None
    last_error: str | None


class EventShown(msgspec.Struct, frozen=True):
    """An event with its deliveries."""

    id: str
    customer_id: str
    type: str
    data: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]
    created_at: Time
    matched: int
    deliveries: list[EventDelivery]


class Events:
    """The handlers."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._enforcement = Enforcement()

    async def emit_event(self, call: Call[EmitQuery, EventToEmit]) -> Answer:
        """Emit an event.

        With wait_s the answer is 200 as soon as every first attempt has ended, or the time is up; without it 202 at
        once. Emitting from SQL (dealix.emit) is part of the emitter's own transaction and far cheaper. 400 for an
        unknown event type, 409 for an event_id that was used with another type or payload. 422 also for a payload that
        does not fit the schema of its type, where that is enforced.
        """
        return await self._traced(self._emit_event, call, "/events/emit")

    async def _emit_event(self, call: Call[EmitQuery, EventToEmit], traceparent: str | None) -> Answer:
        new = _new_event(call.body, "")
        async with self._services.pool.connection(WORK_S) as conn:
            await self._enforcement.check(conn, [(new.event_type, new.payload, "payload")])
            try:
                emitted = await emit.emit(
                    conn,
                    CustomerId(new.customer_id),
                    new.event_type,
                    new.payload,
                    new.event_id,
                    traceparent=traceparent,
                )
            except EmitRejected as e:
                raise _refused(e) from e
        wait_s = call.query.wait_s or 0
        delivered, failed = await first_attempts(
            self._services.pool, CustomerId(new.customer_id), emitted, wait_s=wait_s, fresh=new.event_id is None
        )
        return Answer(
            200 if wait_s else 202,
            EmittedEvent(
                event_id=emitted.event_id,
                event_type=new.event_type,
                customer_id=new.customer_id,
                matched=emitted.matched,
                delivered=delivered,
                failed=failed,
                pending=max(emitted.matched - delivered - failed, 0),
            ),
        )

    async def emit_batch(self, call: Call[NoQuery, Batch]) -> Answer:
        """Emit up to 1,000 events, all or none.

        400 for an unknown event type, 409 for an event_id that was used with another type or payload. 422 also for a
        payload that does not fit the schema of its type, where that is enforced.
        """
        return await self._traced(self._emit_batch, call, "/events/emit/batch")

    async def _emit_batch(self, call: Call[NoQuery, Batch], traceparent: str | None) -> Answer:
        new = [_new_event(one, f"events[{i}].") for i, one in enumerate(call.body.events)]
        payloads = [(one.event_type, one.payload, f"events[{i}].payload") for i, one in enumerate(new)]
        async with self._services.pool.connection(WORK_S) as conn:
            await self._enforcement.check(conn, payloads)
            try:
                emitted = await emit.emit_batch(conn, new, traceparent=traceparent)
            except EmitRejected as e:
                raise _refused(e) from e
        return Answer(
            202,
            EmittedBatch(
                count=len(emitted),
                matched=sum(one.matched for one in emitted),
                events=[BatchItem(one.event_id, one.matched) for one in emitted],
            ),
        )

    async def _traced(
        self, emit_: Callable[[Call[Q, B], str | None], Awaitable[Answer]], call: Call[Q, B], path: str
    ) -> Answer:
        """Emit with the traceparent that came; where traces are on with that of a span of its own, which it ends."""
        tracer = self._services.tracer
        if tracer is None:
            return await emit_(call, call.traceparent)
        span = tracer.emitting(call.traceparent)
        try:
            answer = await emit_(call, span.context.header)
        except Problem as e:
            span.end(BASE + path, {}, status_code=e.status)
            raise
        except BaseException as e:
            span.end(BASE + path, {}, status_code=None, error=type(e).__name__)
            raise
        span.end(BASE + path, _facts(answer.body), status_code=answer.status)
        return answer

    async def get_event(self, call: Call[EventQuery, NoBody]) -> Answer:
        """Show an event with its deliveries and their states.

        A subscription that was deleted before its first attempt is not listed; `matched` still counts it.
        """
        customer_id = call.caller.acting_for(call.query.customer_id or None)
        event_id = call.path["event_id"]
        async with self._services.pool.connection(WORK_S) as conn:
            row = await events.find(conn, customer_id, event_id) if ids.EVENT_ID.fullmatch(event_id) else None
            if row is None:
                raise not_found("event")
            duties = await events.duties(conn, row)
        return Answer(200, _shown(row, duties))


def routes(services: Services) -> list[Route]:
    """The routes of this noun."""
    it = Events(services)
    return [
        route(
            "POST",
            "/events/emit",
            it.emit_event,
            who="ops",
            query=EmitQuery,
            body=EventToEmit,
            takes_traceparent=True,
            answers={200: EmittedEvent, 202: EmittedEvent},
            problems=(409,),
        ),
        route(
            "POST",
            "/events/emit/batch",
            it.emit_batch,
            who="ops",
            body=Batch,
            takes_traceparent=True,
            answers={202: EmittedBatch},
            problems=(409,),
        ),
        route("GET", "/events/<event_id>", it.get_event, query=EventQuery, answers={200: EventShown}, problems=(404,)),
    ]


def _new_event(given: EventToEmit, where: str) -> NewEvent:
    payload = "{}" if given.payload is UNSET else check_payload(given.payload, f"{where}payload")
    return NewEvent(given.customer_id, given.event_type, payload, given.event_id or None)


def _facts(body: msgspec.Struct) -> Facts:
    """What a span tells of events that were emitted."""
    if isinstance(body, EmittedEvent):
        return {
            "dealix.customer.id": body.customer_id,
            "dealix.event.id": body.event_id,
            "dealix.event.type": body.event_type,
            "dealix.event.matched": body.matched,
        }
    return {"dealix.event.count": body.count} if isinstance(body, EmittedBatch) else {}


def _refused(error: EmitRejected) -> Problem:
    """What `dealix.emit` says, as a status. Its texts begin with the name of the argument that is at fault."""
    where = "" if error.index is None else f"events[{error.index}]"
    detail = f"{where}: {error}." if where else f"{error}."
    match error.sqlstate:
        case "23505":
            return Problem(409, "event_id_conflict", detail)
        case "22P02":
            return Problem(400, "malformed_json", detail)
        case _ if str(error).startswith("event_type"):
            return Problem(400, "unknown_event_type", detail)
        case _:
            return Problem(422, "invalid", detail, errors=[FieldError(where, str(error))])


def _shown(row: EventRow, duties: list[Duty]) -> EventShown:
    return EventShown(
        id=row.id,
        customer_id=row.customer_id,
        type=row.type,
        data=msgspec.Raw(row.data),
        created_at=clock.iso(row.created_at),
        matched=row.matched,
        deliveries=[
            EventDelivery(
                subscription_id=one.subscription_id,
                endpoint_url=one.endpoint_url,
                state=one.state,
                held_by=one.held_by,
                attempts=one.attempts,
                next_attempt_at=None if one.next_attempt_at is None else clock.iso(one.next_attempt_at),
                last_attempt_id=one.last_attempt_id,
                last_attempt_at=None if one.last_attempt_at is None else clock.iso(one.last_attempt_at),
                last_status_code=one.last_status_code,
                last_error=one.last_error,
            )
            for one in duties
        ],
    )
