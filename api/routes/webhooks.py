"""/webhooks: subscriptions, created, listed, read, changed and deleted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.auth import Caller
from api.errors import FieldError, Problem, not_found
from api.fields import EVENT_TYPE, CustomerIdText, DescriptionText, EndpointUrlText, EventTypeText, Time
from api.operation import Answer, Call, NoBody, NoQuery, Route, route
from api.paging import CursorText, List
from api.services import WORK_S, Services
from api.verification import SECRET_WARNING, example_python
from daemon import clock, ids
from daemon.errors import EndpointUrlInvalid, SubscriptionLimit
from daemon.ids import SubscriptionId
from daemon.policy import endpoint_url
from daemon.store import event_types, subscriptions
from daemon.store.connection import Connection
from daemon.store.subscriptions import Changes, Subscription

CHECK_S: Final = 3.0
"""How long a registration waits for DNS. What it cannot tell by then is told at connect."""

_POSITION: Final = re.compile(r"[0-9]{1,18}\.whk_[0-9a-f]{24}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TYPE: Final = re.compile(EVENT_TYPE)

EventFilter = Annotated[
    list[EventTypeText], Meta(max_length=1000, description="The types that are wanted; none means all.")
]
PropagateTraceContext = Annotated[
    bool,
    Meta(description="Whether requests carry the header traceparent (W3C Trace Context) where there is one to send."),
]


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An endpoint to subscribe. An ops key has to name customer_id."""

    endpoint_url: EndpointUrlText
    customer_id: CustomerIdText | UnsetType = UNSET
    events: EventFilter = []
    description: DescriptionText | None = None
    propagate_trace_context: PropagateTraceContext = False


class WebhookChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be different; what is left out stays."""

    enabled: bool | UnsetType = UNSET
    events: EventFilter | UnsetType = UNSET
    description: DescriptionText | UnsetType | None = UNSET
    endpoint_url: EndpointUrlText | UnsetType = UNSET
    propagate_trace_context: PropagateTraceContext | UnsetType = UNSET


class WebhookQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose subscriptions, and which page of them."""

    customer_id: CustomerIdText | UnsetType = UNSET
    enabled_only: bool = False
    limit: Annotated[int, Meta(ge=1, le=500)] = 100
    cursor: CursorText | UnsetType = UNSET


class Webhook(msgspec.Struct, frozen=True):
    """A subscription, without its secret."""

    id: str
    customer_id: str
    endpoint_url: str
    events: list[str]
    description: str | None
    propagate_trace_context: PropagateTraceContext
    enabled: bool
    disabled_reason: str | None
    last_delivery_at: Time | None
    last_status_code: int | None
    consecutive_failures: int
    circuit: Literal["closed", "open", "half_open"]
    created_at: Time
    updated_at: Time


class CreatedWebhook(msgspec.Struct, frozen=True):
    """A new subscription with its secret, which is not shown again."""

    id: str
    customer_id: str
    endpoint_url: str
    events: list[str] | Literal["all"]
    description: str | None
    propagate_trace_context: PropagateTraceContext
    secret: str
    secret_warning: str
    verification_example_python: str


class WebhookList(msgspec.Struct, frozen=True):
    """A page of subscriptions, newest first."""

    customer_id: str
    count: int
    subscriptions: list[Webhook]
    next_cursor: str | None


class DeletedWebhook(msgspec.Struct, frozen=True):
    """A subscription that is gone, with what it had not been sent yet."""

    id: str
    deleted: Literal[True] = True


class Webhooks:
    """The handlers."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create_webhook(self, call: Call[NoQuery, NewWebhook]) -> Answer:
        """Subscribe an endpoint.

        400 for a URL that is not https and for unknown event types, 409 for more than 100 subscriptions. The answer
        holds the secret, once.
        """
        customer_id = call.caller.acting_for(call.body.customer_id or None)
        wanted = list(dict.fromkeys(call.body.events))
        url = await self._checked_url(call.body.endpoint_url)
        async with self._services.pool.connection(WORK_S) as conn:
            await refuse_unknown(conn, wanted)
            try:
                made, secret = await subscriptions.create(
                    conn,
                    ring=self._services.ring,
                    customer_id=customer_id,
                    endpoint_url=url,
                    events=wanted,
                    description=call.body.description,
                    propagate_trace_context=call.body.propagate_trace_context,
                )
            except SubscriptionLimit as e:
                raise Problem(409, "too_many_subscriptions", f"{e}.") from e
        return Answer(
            201,
            CreatedWebhook(
                id=made.id,
                customer_id=made.customer_id,
                endpoint_url=made.endpoint_url,
                events=made.events or "all",
                description=made.description,
                propagate_trace_context=made.propagate_trace_context,
                secret=secret,
                secret_warning=SECRET_WARNING,
                verification_example_python=example_python(),
            ),
        )

    async def list_webhooks(self, call: Call[WebhookQuery, NoBody]) -> Answer:
        """List a customer's subscriptions, newest first."""
        query = call.query
        customer_id = call.caller.acting_for(query.customer_id or None)
        pages = List("webhooks", [customer_id, query.enabled_only])
        before = _moment_and_id(pages.position(query.cursor, _POSITION)) if query.cursor else None
        async with self._services.pool.connection(WORK_S) as conn:
            rows = await subscriptions.page(conn, customer_id, query.enabled_only, query.limit + 1, before)
        shown = rows[: query.limit]
        return Answer(
            200,
            WebhookList(
                customer_id=customer_id,
                count=len(shown),
                subscriptions=[_shown(row) for row in shown],
                next_cursor=pages.cursor(_position(shown[-1])) if len(rows) > len(shown) else None,
            ),
        )

    async def get_webhook(self, call: Call[NoQuery, NoBody]) -> Answer:
        """Show a subscription."""
        async with self._services.pool.connection(WORK_S) as conn:
            return Answer(200, _shown(await owned(conn, call.caller, call.path)))

    async def change_webhook(self, call: Call[NoQuery, WebhookChanges]) -> Answer:
        """Change a subscription.

        Enabling it sets consecutive_failures to 0 and closes the breaker; deliveries that were held go on. 400 for a
        URL that is not https and for unknown event types.
        """
        changes = _changes(call.body)
        async with self._services.pool.connection(WORK_S) as conn:
            await owned(conn, call.caller, call.path)
            await refuse_unknown(conn, changes.get("events", ()))
        if "endpoint_url" in changes:  # after the owner is known; DNS is waited for without a connection
            changes["endpoint_url"] = await self._checked_url(changes["endpoint_url"])
        async with self._services.pool.connection(WORK_S) as conn:
            changed = await subscriptions.update(conn, SubscriptionId(call.path["subscription_id"]), changes)
        if changed is None:  # deleted meanwhile
            raise not_found("webhook")
        return Answer(200, _shown(changed))

    async def delete_webhook(self, call: Call[NoQuery, NoBody]) -> Answer:
        """Delete a subscription.

        What it has not been sent yet is discarded. Its log stays until retention removes it.
        """
        async with self._services.pool.connection(WORK_S) as conn:
            row = await owned(conn, call.caller, call.path)
            if not await subscriptions.delete(conn, row.id):
                raise not_found("webhook")
        return Answer(200, DeletedWebhook(row.id))

    async def _checked_url(self, url: str) -> str:
        """The canonical form of a URL that may be called. Raises Problem 400 and 422."""
        egress = self._services.settings.egress
        try:
            target = endpoint_url.parse(
                url, allow_localhost=egress.allow_localhost, allow_networks=egress.allow_networks
            )
        except EndpointUrlInvalid as e:
            if e.kind == "scheme":
                raise Problem(400, "url_not_https", f"{e}.") from e
            raise _refused_url(e.kind, str(e)) from e
        reason = await self._services.sender.check(target, CHECK_S)
        if reason is not None:
            raise _refused_url("forbidden", reason)
        return target.url


def routes(services: Services) -> list[Route]:
    """The routes of this noun."""
    it = Webhooks(services)
    one = "/webhooks/<subscription_id>"
    return [
        route("POST", "/webhooks", it.create_webhook, body=NewWebhook, answers={201: CreatedWebhook}, problems=(409,)),
        route("GET", "/webhooks", it.list_webhooks, query=WebhookQuery, answers={200: WebhookList}),
        route("GET", one, it.get_webhook, answers={200: Webhook}, problems=(404,)),
        route("PATCH", one, it.change_webhook, body=WebhookChanges, answers={200: Webhook}, problems=(404,)),
        route("DELETE", one, it.delete_webhook, answers={200: DeletedWebhook}, problems=(404,)),
    ]


async def owned(conn: Connection, caller: Caller, path: Mapping[str, str]) -> Subscription:
    """The subscription that the path names, if the caller may act for its owner. Raises Problem 404."""
    subscription_id = path["subscription_id"]
    row = (
        await subscriptions.get(conn, SubscriptionId(subscription_id))
        if ids.SUBSCRIPTION_ID.fullmatch(subscription_id)
        else None
    )
    if row is None:
        raise not_found("webhook")
    caller.check_owner(row.customer_id, "webhook")
    return row


async def refuse_unknown(conn: Connection, types: Iterable[str]) -> None:
    """Raises Problem 400 that names the event types that do not exist."""
    wanted = list(types)
    unknown = [one for one in wanted if not _TYPE.search(one)] or (
        await event_types.unknown(conn, wanted) if wanted else []
    )
    if unknown:
        named = ", ".join(unknown)[:200]
        raise Problem(400, "unknown_event_type", f"No such event type: {named}. GET /event-types lists them.")


def _refused_url(kind: Literal["malformed", "forbidden"], detail: str) -> Problem:
    message = detail.removeprefix("endpoint_url: ")
    return Problem(422, f"url_{kind}", f"endpoint_url: {message}.", errors=[FieldError("endpoint_url", message)])


def _changes(body: WebhookChanges) -> Changes:
    changes: Changes = {}
    if body.enabled is not UNSET:
        changes["enabled"] = body.enabled
    if body.events is not UNSET:
        changes["events"] = list(dict.fromkeys(body.events))
    if body.description is not UNSET:
        changes["description"] = body.description
    if body.endpoint_url is not UNSET:
        changes["endpoint_url"] = body.endpoint_url
    if body.propagate_trace_context is not UNSET:
        changes["propagate_trace_context"] = body.propagate_trace_context
    return changes


def _position(row: Subscription) -> str:
    return f"{(row.created_at - _EPOCH) // timedelta(microseconds=1)}.{row.id}"


def _moment_and_id(position: str) -> tuple[datetime, str]:
    microseconds, _, subscription_id = position.partition(".")
    return _EPOCH + timedelta(microseconds=int(microseconds)), subscription_id


def _shown(row: Subscription) -> Webhook:
    return Webhook(
        id=row.id,
        customer_id=row.customer_id,
        endpoint_url=row.endpoint_url,
        events=row.events,
        description=row.description,
        propagate_trace_context=row.propagate_trace_context,
        enabled=row.enabled,
        disabled_reason=row.disabled_reason,
        last_delivery_at=None if row.last_delivery_at is None else clock.iso(row.last_delivery_at),
        last_status_code=row.last_status_code,
        consecutive_failures=row.consecutive_failures,
        circuit=row.circuit,
        created_at=clock.iso(row.created_at),
        updated_at=clock.iso(row.updated_at),
    )
