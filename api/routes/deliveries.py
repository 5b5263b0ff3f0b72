"""/deliveries: the log of attempts, and sending one event to one subscription once more."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.auth import Caller
from api.errors import Problem, invalid, not_found
from api.fields import CustomerIdText, EventIdText, EventTypeFilter, MomentText, SubscriptionIdText, Time, moment
from api.operation import Answer, Call, NoBody, NoQuery, Route, route
from api.paging import CursorText, List
from api.services import WORK_S, Services
from daemon import clock, ids
from daemon.ids import CustomerId
from daemon.policy import signing
from daemon.store import deliveries, events, subscriptions
from daemon.store.connection import Connection
from daemon.store.deliveries import Attempt, AttemptRow, Filter, Logged
from daemon.store.events import EventRow

LOOK_S: Final = 0.04
"""How long a list looks for rows; then it answers with those it has, and a cursor to go on from. With the look that was
begun last, and all around it, that is less than 100 ms."""

Header = Annotated[list[str], Meta(min_length=2, max_length=2, description="Name and value.")]


class DeliveryQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which attempts, and which page of them. `since` is included, `until` is not."""

    customer_id: CustomerIdText | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    success_only: bool = False
    failed_only: bool = False
    subscription_id: SubscriptionIdText | UnsetType = UNSET
    event_id: EventIdText | UnsetType = UNSET
    event_type: EventTypeFilter | UnsetType = UNSET
    since: MomentText | UnsetType = UNSET
    until: MomentText | UnsetType = UNSET
    cursor: CursorText | UnsetType = UNSET


class Delivery(msgspec.Struct, frozen=True):
    """One attempt."""

    id: str
    subscription_id: str
    event_id: str
    event_type: str
    attempt: int
    endpoint_url: str
    status_code: int | None
    success: bool
    error: str | None
    duration_ms: int | None
    created_at: Time


class DeliveryList(msgspec.Struct, frozen=True):
    """A page of attempts, newest first."""

    customer_id: str
    count: int
    deliveries: list[Delivery]
    next_cursor: str | None


class RequestShown(msgspec.Struct, frozen=True):
    """What was sent. `body` is null once retention has removed the event."""

    method: Literal["POST"]
    url: str
    headers: list[Header]
    body: str | None


class ResponseShown(msgspec.Struct, frozen=True):
    """What came back. `body` holds its first 4 KiB; `truncated` says that there was more, or should have been."""

    status_code: int
    headers: list[Header]
    body: str
    truncated: bool


class DeliveryShown(msgspec.Struct, frozen=True):
    """One attempt with its request and response. `response` is null where no complete header block came."""

    id: str
    customer_id: str
    subscription_id: str
    event_id: str
    event_type: str
    attempt: int
    endpoint_url: str
    status_code: int | None
    success: bool
    error: str | None
    duration_ms: int | None
    created_at: Time
    outcome: Logged
    request: RequestShown
    response: ResponseShown | None


class RetriedDelivery(msgspec.Struct, frozen=True):
    """A delivery that is about to be attempted again, or is being attempted at this moment."""

    event_id: str
    subscription_id: str
    attempt: int
    state: Literal["pending", "in_flight"]


class Deliveries:
    """The handlers."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list_deliveries(self, call: Call[DeliveryQuery, NoBody]) -> Answer:
        """List a customer's attempts, newest first.

        400 for success_only together with failed_only. Where a filter matches little in a long log, a page may have
        fewer rows than `limit`, or none, and still have a next_cursor.
        """
        query = call.query
        customer_id = call.caller.acting_for(query.customer_id or None)
        wanted = _filter(query, customer_id)
        pages = List(
            "deliveries",
            [
                customer_id,
                query.success_only,
                query.failed_only,
                *(text or None for text in (query.subscription_id, query.event_id, query.event_type)),
                *(text or None for text in (query.since, query.until)),
            ],
        )
        before = pages.position(query.cursor, ids.ATTEMPT_ID) if query.cursor else None
        oldest = clock.now() - timedelta(days=self._services.settings.retention.days + 1)
        async with self._services.pool.connection(WORK_S) as conn:
            page = await deliveries.page(conn, wanted, limit=query.limit, before=before, oldest=oldest, look_s=LOOK_S)
        return Answer(
            200,
            DeliveryList(
                customer_id=customer_id,
                count=len(page.rows),
                deliveries=[_listed(row) for row in page.rows],
                next_cursor=None if page.before is None else pages.cursor(page.before),
            ),
        )

    async def get_delivery(self, call: Call[NoQuery, NoBody]) -> Answer:
        """Show an attempt with its request and response."""
        async with self._services.pool.connection(WORK_S) as conn:
            found = await _owned(conn, call.caller, call.path["attempt_id"])
            event = await _event_of(conn, found)
        return Answer(200, _shown(found, event))

    async def retry_delivery(self, call: Call[NoQuery, NoBody]) -> Answer:
        """Send the event of an attempt to its subscription once more, now.

        It becomes the next attempt number. If it fails, it is retried only where the delivery still has retries to
        come. 409 while the subscription is disabled, 410 if it, or the event, is gone.
        """
        async with self._services.pool.connection(WORK_S) as conn:
            found = await _owned(conn, call.caller, call.path["attempt_id"])
            subscription = await subscriptions.get(conn, found.row.subscription_id)
            if subscription is None:
                raise Problem(410, "subscription_gone", "The subscription of this delivery was deleted.")
            if not subscription.enabled:
                raise Problem(409, "subscription_disabled", "The subscription is disabled: enable it first.")
            if await _event_of(conn, found) is None:
                raise Problem(410, "event_gone", "The event is older than the retention and no longer there.")
            retried = await deliveries.retry(conn, found)
        return Answer(
            202, RetriedDelivery(found.row.event_id, found.row.subscription_id, retried.attempt, retried.state)
        )


def routes(services: Services) -> list[Route]:
    """The routes of this noun."""
    it = Deliveries(services)
    one = "/deliveries/<attempt_id>"
    return [
        route(
            "GET", "/deliveries", it.list_deliveries, query=DeliveryQuery, answers={200: DeliveryList}, problems=(400,)
        ),
        route("GET", one, it.get_delivery, answers={200: DeliveryShown}, problems=(404,)),
        route("POST", f"{one}/retry", it.retry_delivery, answers={202: RetriedDelivery}, problems=(404, 409, 410)),
    ]


def _filter(query: DeliveryQuery, customer_id: CustomerId) -> Filter:
    if query.success_only and query.failed_only:
        raise Problem(400, "conflicting_filters", "success_only and failed_only exclude each other.")
    since = moment("since", query.since) if query.since else None
    until = moment("until", query.until) if query.until else None
    if since is not None and until is not None and since > until:
        raise invalid("until", "is before since")
    return Filter(
        customer_id=customer_id,
        subscription_id=query.subscription_id or None,
        event_id=query.event_id or None,
        event_type=query.event_type or None,
        success=True if query.success_only else False if query.failed_only else None,
        since=since,
        until=until,
    )


async def _owned(conn: Connection, caller: Caller, attempt_id: str) -> Attempt:
    """The attempt that the path names, if the caller may act for its owner. Raises Problem 404."""
    found = await deliveries.find(conn, attempt_id) if ids.ATTEMPT_ID.fullmatch(attempt_id) else None
    if found is None:
        raise not_found("delivery")
    caller.check_owner(found.customer_id, "delivery")
    return found


async def _event_of(conn: Connection, found: Attempt) -> EventRow | None:
    return await events.find_between(conn, found.customer_id, found.row.event_id, events.bounds_of_day(found.event_day))


def _listed(row: AttemptRow) -> Delivery:
    return Delivery(
        id=row.id,
        subscription_id=row.subscription_id,
        event_id=row.event_id,
        event_type=row.event_type,
        attempt=row.attempt,
        endpoint_url=row.endpoint_url,
        status_code=row.status_code,
        success=row.success,
        error=row.error,
        duration_ms=row.duration_ms,
        created_at=clock.iso(row.created_at),
    )


def _shown(found: Attempt, event: EventRow | None) -> DeliveryShown:
    row = found.row
    response = None
    if row.status_code is not None:
        response = ResponseShown(
            status_code=row.status_code,
            headers=[[name, value] for name, value in found.response_headers],
            body=found.response_body or "",
            truncated=found.response_truncated,
        )
    return DeliveryShown(
        id=row.id,
        customer_id=found.customer_id,
        subscription_id=row.subscription_id,
        event_id=row.event_id,
        event_type=row.event_type,
        attempt=row.attempt,
        endpoint_url=row.endpoint_url,
        status_code=row.status_code,
        success=row.success,
        error=row.error,
        duration_ms=row.duration_ms,
        created_at=clock.iso(row.created_at),
        outcome=row.outcome,
        request=RequestShown("POST", row.endpoint_url, _request_headers(found), _request_body(event)),
        response=response,
    )


def _request_headers(found: Attempt) -> list[list[str]]:
    """The headers as they were sent, made again: nothing in them but the signatures is chance."""
    row = found.row
    if found.signature is None:  # nothing was signed, so nothing was sent
        return []
    t = found.signature.partition(",")[0].removeprefix("t=")
    return [
        [name, value]
        for name, value in signing.headers(
            event_id=row.event_id,
            event_type=row.event_type,
            attempt=row.attempt,
            dealix_signature=found.signature,
            webhook_signature=found.webhook_signature,
            t=int(t),
            traceparent=found.traceparent,
        )
    ]


def _request_body(event: EventRow | None) -> str | None:
    if event is None:
        return None
    return signing.envelope(
        event_id=event.id,
        event_type=event.type,
        customer_id=event.customer_id,
        data=event.data,
        created_at=event.created_at,
    ).decode()
