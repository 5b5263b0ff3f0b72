"""The delivery log: every attempt, newest first, and each with all that is known of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from urllib.parse import urlencode

from quart import Response, request

from api.errors import Problem
from api.portal.explain import explain
from api.portal.forms import Faults
from api.portal.frame import Frame
from api.portal.visit import Form, Visit
from api.routes.deliveries import DeliveryList, DeliveryShown, RetriedDelivery
from api.routes.event_types import EventTypeList
from api.routes.events import EventShown
from api.routes.webhooks import WebhookList
from daemon import clock, ids
from daemon.store.events import bounds_of

HOME: Final = "/portal/deliveries"
ROWS: Final = 50
LATE: Final = timedelta(minutes=1)
"""How long after its beginning an attempt may come into the log, as a rule: it has ended then and was recorded."""
_FILTERS: Final = ("subscription_id", "event_type", "event_id", "since", "until")


class Deliveries:
    """The views."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    async def deliveries(self, visitor: Visit) -> Response:
        """The log with its filters."""
        chosen = _chosen()
        faults = Faults()
        listed: DeliveryList | None = None
        try:
            listed = await self._list(visitor, chosen)
        except Problem as problem:
            if problem.status != 422:
                raise
            faults = Faults.of(problem)
        subscribed = await self._frame.ask(visitor, "list_webhooks", WebhookList, query={"limit": 100})
        types = await self._frame.ask(visitor, "list_event_types", EventTypeList)
        return self._frame.page(
            visitor,
            "deliveries.html",
            faults.status,
            chosen=chosen,
            rows=listed.deliveries if listed else [],
            newer="?" + urlencode(_without_cursor(chosen)),
            older=_older(chosen, listed),
            live=_live(chosen, listed) if "cursor" not in chosen else None,
            endpoints=subscribed.subscriptions,
            types=types.events,
            faults=faults,
        )

    async def delivery_rows(self, visitor: Visit) -> Response:
        """The newest rows alone, for a page that is open; nothing where `seen` is still the newest."""
        chosen = _without_cursor(_chosen())
        seen = request.args.get("seen", "")
        bounds = bounds_of(seen) if ids.ATTEMPT_ID.fullmatch(seen) else None
        if bounds is not None:  # a page asks every two seconds: no more of the log than has come since
            newest = await self._list(visitor, chosen, limit=1, since=clock.iso(bounds[0]))
            if [one.id for one in newest.deliveries] in ([], [seen]):
                return Response("", 204)
        listed = await self._list(visitor, chosen)
        if not listed.deliveries and not seen:
            return Response("", 204)
        return self._frame.page(visitor, "delivery_rows.html", rows=listed.deliveries)

    async def delivery(self, visitor: Visit) -> Response:
        """One attempt, with its request, its response and the other attempts to bring the same event."""
        return await self._one(visitor)

    async def retry_delivery(self, visitor: Visit, _: Form) -> Response:
        """Send its event once more, and say so on the page."""
        try:
            retried = await self._frame.ask(visitor, "retry_delivery", RetriedDelivery)
        except Problem as problem:
            if problem.status == 404:
                raise
            return await self._one(visitor, faults=Faults.of(problem))
        return await self._one(visitor, retried=retried)

    async def _one(
        self, visitor: Visit, *, retried: RetriedDelivery | None = None, faults: Faults | None = None
    ) -> Response:
        it = await self._frame.ask(visitor, "get_delivery", DeliveryShown)
        same = {"event_id": it.event_id, "subscription_id": it.subscription_id, "limit": 50}
        attempts = await self._frame.ask(visitor, "list_deliveries", DeliveryList, query=same)
        event = await self._event(visitor, it.event_id)
        duties = event.deliveries if event else []
        duty = next((one for one in duties if one.subscription_id == it.subscription_id), None)
        return self._frame.page(
            visitor,
            "delivery.html",
            200 if faults is None else faults.status,
            it=it,
            why=explain(it.outcome, it.status_code, it.error),
            attempts=attempts.deliveries,
            duty=duty,
            retried=retried,
            faults=faults,
        )

    async def _event(self, visitor: Visit, event_id: str) -> EventShown | None:
        """None once retention has removed it."""
        try:
            return await self._frame.operations.ask(
                visitor.caller, "get_event", EventShown, path={"event_id": event_id}
            )
        except Problem as problem:
            if problem.status == 404:
                return None
            raise

    async def _list(self, visitor: Visit, chosen: dict[str, str], **other: object) -> DeliveryList:
        """The rows that were chosen; `other` parameters of the API stand in for those."""
        query: dict[str, object] = {"limit": ROWS}
        for name in ("subscription_id", "event_type", "event_id", "cursor"):
            if name in chosen:
                query[name] = chosen[name]
        for name in ("since", "until"):  # as the browser's own field has it, without seconds and zone
            if name in chosen:
                query[name] = chosen[name] + (":00Z" if len(chosen[name]) == 16 else "Z")
        if (outcome := chosen.get("outcome")) in {"success", "failed"}:
            query[f"{outcome}_only"] = True
        return await self._frame.ask(visitor, "list_deliveries", DeliveryList, query=query | other)


def _chosen() -> dict[str, str]:
    given = {name: request.args.get(name, "").strip() for name in (*_FILTERS, "outcome", "cursor")}
    return {name: value for name, value in given.items() if value}


def _without_cursor(chosen: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in chosen.items() if name != "cursor"}


def _older(chosen: dict[str, str], listed: DeliveryList | None) -> str | None:
    if listed is None or listed.next_cursor is None:
        return None
    return "?" + urlencode(_without_cursor(chosen) | {"cursor": listed.next_cursor})


def _live(chosen: dict[str, str], listed: DeliveryList | None) -> str:
    """Where a page that is open asks for the newest rows.

    One without any asks for those that are still to come: where hardly a row fits, the whole log would be looked
    through every two seconds.
    """
    if listed is not None and not listed.deliveries and "until" not in chosen:
        chosen = chosen | {"since": max(chosen.get("since", ""), clock.iso(clock.now() - LATE)[:19])}
    return f"{HOME}/rows?{urlencode(chosen)}"


def install(frame: Frame) -> None:
    """Their addresses."""
    it = Deliveries(frame)
    frame.show(HOME, it.deliveries)
    frame.show(f"{HOME}/rows", it.delivery_rows)
    frame.show(f"{HOME}/<attempt_id>", it.delivery)
    frame.take(f"{HOME}/<attempt_id>/retry", it.retry_delivery)
