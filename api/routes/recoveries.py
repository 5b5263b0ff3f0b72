"""/recoveries: bulk replays of a subscription's events, begun at /webhooks/{id}/recover, looked at and cancelled."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.auth import Caller
from api.errors import Problem, invalid, not_found
from api.fields import CustomerIdText, MomentText, SubscriptionIdText, Time, moment
from api.operation import Answer, Call, NoBody, NoQuery, Route, route
from api.paging import CursorText, List
from api.routes.webhooks import owned
from api.services import WORK_S, Services
from daemon import clock, ids
from daemon.log import get
from daemon.store import recoveries
from daemon.store.connection import Connection
from daemon.store.recoveries import Kind, Recovery, Scope, State
from daemon.store.recovery_walk import Walk
from daemon.store.subscriptions import Subscription

log = get("recovery")

COUNT_S: Final = 2.0
"""How long the deliveries are counted: some hundred thousand. With more of them `queued` is a lower bound at first."""

StatusWanted = Annotated[
    Kind,
    Meta(
        description="failed: events whose newest attempt did not deliver, and that never were delivered. missed: those "
        "that were never due to it, emitted while it was disabled or before it wanted their type. all: every event "
        "that it wants, delivered ones too."
    ),
]
Queued = Annotated[int, Meta(ge=0, description="Deliveries that were found at the start.")]
Exact = Annotated[
    bool, Meta(description="false: there are more than `queued`, which could not all be counted in the time.")
]


class NewRecovery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which events are to be sent once more: those emitted from `since` on and before `until`, or now.

    With `dry_run` they are only counted.
    """

    since: MomentText
    status: StatusWanted
    until: MomentText | UnsetType = UNSET
    dry_run: bool = False


class RecoveryCount(msgspec.Struct, frozen=True):
    """What a recovery would send if it began now. Nothing was begun."""

    subscription_id: str
    status: StatusWanted
    since: Time
    until: Time
    queued: Queued
    exact: Exact
    dry_run: Literal[True] = True


class RecoveryShown(msgspec.Struct, frozen=True):
    """A recovery: `done` were delivered, `failed` were attempted and not delivered."""

    id: str
    customer_id: str
    subscription_id: str
    status: StatusWanted
    since: Time
    until: Time
    state: State
    queued: Queued
    exact: Exact
    done: Annotated[int, Meta(ge=0)]
    failed: Annotated[int, Meta(ge=0)]
    created_at: Time
    ended_at: Time | None


class RecoveryQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose recoveries, and which page of them."""

    customer_id: CustomerIdText | UnsetType = UNSET
    subscription_id: SubscriptionIdText | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    cursor: CursorText | UnsetType = UNSET


class RecoveryList(msgspec.Struct, frozen=True):
    """A page of recoveries, newest first."""

    customer_id: str
    count: int
    recoveries: list[RecoveryShown]
    next_cursor: str | None


class Recoveries:
    """The handlers."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def recover_webhook(self, call: Call[NoQuery, NewRecovery]) -> Answer:
        """Send a subscription's events once more.

        A job that runs beside live traffic and yields to it: read it at /recoveries/{id}. The bytes are those of the
        first delivery; what was attempted before goes on with its next attempt number, and a failure is final as with
        a retry; what was missed is delivered as a new event would be. It waits while the subscription is disabled
        again or its breaker is open. 409 while it is disabled (a dry run is allowed), or another recovery of it runs.
        """
        pool = self._services.pool
        async with pool.connection(WORK_S) as conn:
            row = await owned(conn, call.caller, call.path)
        scope = self._scope(call.body, row)
        if not row.enabled and not call.body.dry_run:
            raise Problem(409, "subscription_disabled", "The subscription is disabled: enable it first.")
        async with pool.connection(WORK_S) as conn:
            queued, exact = await Walk(scope, row.events, clock.now()).count(conn, time_s=COUNT_S)
        if call.body.dry_run:
            since, until = clock.iso(scope.since), clock.iso(scope.until)
            return Answer(200, RecoveryCount(row.id, scope.kind, since, until, queued, exact))
        async with pool.connection(WORK_S) as conn:
            begun = await recoveries.begin(conn, scope, queued=queued, exact=exact)
        if begun is None:
            raise Problem(
                409, "recovery_running", "A recovery of this subscription is running: wait for its end, or cancel it."
            )
        _note("recovery.started", begun, call.caller)
        return Answer(202, _shown(begun))

    async def list_recoveries(self, call: Call[RecoveryQuery, NoBody]) -> Answer:
        """List a customer's recoveries, newest first.

        One is kept for as long as events are, counted from its end.
        """
        query = call.query
        customer_id = call.caller.acting_for(query.customer_id or None)
        pages = List("recoveries", [customer_id, query.subscription_id or None])
        before = pages.position(query.cursor, ids.RECOVERY_ID) if query.cursor else None
        async with self._services.pool.connection(WORK_S) as conn:
            rows = await recoveries.page(
                conn,
                customer_id,
                subscription_id=query.subscription_id or None,
                limit=query.limit + 1,
                before=before,
            )
        shown = rows[: query.limit]
        return Answer(
            200,
            RecoveryList(
                customer_id=customer_id,
                count=len(shown),
                recoveries=[_shown(row) for row in shown],
                next_cursor=pages.cursor(shown[-1].id) if len(rows) > len(shown) else None,
            ),
        )

    async def get_recovery(self, call: Call[NoQuery, NoBody]) -> Answer:
        """Show a recovery, and how far it is."""
        async with self._services.pool.connection(WORK_S) as conn:
            return Answer(200, _shown(await _owned(conn, call.caller, call.path["recovery_id"])))

    async def cancel_recovery(self, call: Call[NoQuery, NoBody]) -> Answer:
        """Cancel a recovery.

        Nothing more of it is begun; the few deliveries that are on their way end by themselves. One that has ended
        stays as it is.
        """
        async with self._services.pool.connection(WORK_S) as conn:
            found = await _owned(conn, call.caller, call.path["recovery_id"])
            if await recoveries.cancel(conn, found.id):
                found = await _owned(conn, call.caller, found.id)
                _note("recovery.cancelled", found, call.caller)
        return Answer(200, _shown(found))

    def _scope(self, body: NewRecovery, row: Subscription) -> Scope:
        """The events that are meant, inside of what retention has kept. Raises Problem 422."""
        now = clock.now()
        since = moment("since", body.since)
        until = moment("until", body.until) if body.until else now
        if since > until:
            raise invalid("until", "is before since")
        oldest = now - timedelta(days=self._services.settings.retention.days + 1)
        return Scope(row.customer_id, row.id, body.status, max(since, oldest), min(until, now))


def routes(services: Services) -> list[Route]:
    """The routes of this noun."""
    it = Recoveries(services)
    one = "/recoveries/<recovery_id>"
    return [
        route(
            "POST",
            "/webhooks/<subscription_id>/recover",
            it.recover_webhook,
            body=NewRecovery,
            answers={200: RecoveryCount, 202: RecoveryShown},
            problems=(404, 409),
        ),
        route("GET", "/recoveries", it.list_recoveries, query=RecoveryQuery, answers={200: RecoveryList}),
        route("GET", one, it.get_recovery, answers={200: RecoveryShown}, problems=(404,)),
        route("POST", f"{one}/cancel", it.cancel_recovery, answers={200: RecoveryShown}, problems=(404,)),
    ]


async def _owned(conn: Connection, caller: Caller, recovery_id: str) -> Recovery:
    """The recovery with this id, if the caller may act for its owner. Raises Problem 404."""
    found = await recoveries.get(conn, recovery_id) if ids.RECOVERY_ID.fullmatch(recovery_id) else None
    if found is None:
        raise not_found("recovery")
    caller.check_owner(found.scope.customer_id, "recovery")
    return found


def _note(event: str, row: Recovery, caller: Caller) -> None:
    """Who had what sent once more: for whoever has to account for it later."""
    log.info(
        event,
        recovery_id=row.id,
        customer_id=row.scope.customer_id,
        subscription_id=row.scope.subscription_id,
        status=row.scope.kind,
        since=clock.iso(row.scope.since),
        until=clock.iso(row.scope.until),
        queued=row.queued,
        exact=row.exact,
        done=row.done,
        failed=row.failed,
        key_id=caller.key_id,
    )


def _shown(row: Recovery) -> RecoveryShown:
    return RecoveryShown(
        id=row.id,
        customer_id=row.scope.customer_id,
        subscription_id=row.scope.subscription_id,
        status=row.scope.kind,
        since=clock.iso(row.scope.since),
        until=clock.iso(row.scope.until),
        state=row.state,
        queued=row.queued,
        exact=row.exact,
        done=row.done,
        failed=row.failed,
        created_at=clock.iso(row.created_at),
        ended_at=None if row.ended_at is None else clock.iso(row.ended_at),
    )
