"""Endpoints: what a customer has, how it is doing, and everything that can be done to it."""

from __future__ import annotations

from typing import Final

from quart import Response, request

from api.errors import Problem
from api.operation import Values
from api.portal import health
from api.portal.forms import Faults
from api.portal.frame import Frame, goto
from api.portal.visit import Form, Visit
from api.routes.deliveries import DeliveryList, DeliveryShown
from api.routes.event_types import EventTypeList
from api.routes.recoveries import RecoveryList
from api.routes.secrets import RotatedSecret
from api.routes.test_fires import TestResult
from api.routes.webhooks import CreatedWebhook, DeletedWebhook, Webhook, WebhookList
from api.verification import examples

HOME: Final = "/portal/endpoints"
STRIP: Final = 40
"""Attempts in the strip of an endpoint's page."""
RECOVERIES: Final = 3
"""Of the latest ones."""
KINDS: Final = {
    "failed": ("What failed", "Events that were attempted and never delivered."),
    "missed": ("What was missed", "Events that came while the endpoint was off, or before it wanted them."),
    "all": ("Everything", "All events that it wants, also those that were delivered."),
}
"""What can be recovered, and what that is. English, to be looked up."""
NO_EVENTS: Final = Faults(422, {"events": ("no_events", "")})
OVERLAPS_S: Final = (0, 3600, 86_400, 604_800)


class Endpoints:
    """The views."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    async def endpoints(self, visitor: Visit) -> Response:
        """All of a customer's, newest first: there are at most a hundred."""
        listed = await self._frame.ask(visitor, "list_webhooks", WebhookList, query={"limit": 100})
        rows = [(one, health.of(one)) for one in listed.subscriptions]
        return self._frame.page(visitor, "endpoints.html", rows=rows)

    async def endpoint(self, visitor: Visit) -> Response:
        """One of them."""
        return await self._one(visitor)

    async def new_endpoint(self, visitor: Visit) -> Response:
        """The form for another one."""
        return await self._form(visitor, None, {})

    async def create_endpoint(self, visitor: Visit, form: Form) -> Response:
        """Make it, and show its secret, this once: hence a page instead of a redirect."""
        values = _values(form)
        if _none_chosen(form):
            return await self._form(visitor, None, values, NO_EVENTS)
        try:
            made = await self._frame.ask(visitor, "create_webhook", CreatedWebhook, body=values)
        except Problem as problem:
            return await self._form(visitor, None, values, Faults.of(problem))
        return self._frame.page(
            visitor,
            "secret.html",
            201,
            endpoint_id=made.id,
            endpoint_url=made.endpoint_url,
            secret=made.secret,
            examples=examples(),
            rotated=None,
        )

    async def edit_endpoint(self, visitor: Visit) -> Response:
        """The form with what it is now."""
        it = await self._frame.ask(visitor, "get_webhook", Webhook)
        now = {
            "endpoint_url": it.endpoint_url,
            "description": it.description,
            "events": it.events,
            "propagate_trace_context": it.propagate_trace_context,
        }
        return await self._form(visitor, it, now)

    async def change_endpoint(self, visitor: Visit, form: Form) -> Response:
        """Take over what was changed."""
        values = _values(form)
        it = await self._frame.ask(visitor, "get_webhook", Webhook)
        if values["endpoint_url"] == it.endpoint_url:
            del values["endpoint_url"]  # no look-up for what stays
        if _none_chosen(form):
            return await self._form(visitor, it, {"endpoint_url": it.endpoint_url} | values, NO_EVENTS)
        try:
            await self._frame.ask(visitor, "change_webhook", Webhook, body=values)
        except Problem as problem:
            return await self._form(visitor, it, {"endpoint_url": it.endpoint_url} | values, Faults.of(problem))
        return goto(f"{HOME}/{it.id}")

    async def switch_endpoint(self, visitor: Visit, form: Form) -> Response:
        """Pause or enable it."""
        changed = await self._frame.ask(
            visitor, "change_webhook", Webhook, body={"enabled": form.get("enabled") == "true"}
        )
        return goto(f"{HOME}/{changed.id}")

    async def confirm_rotate(self, visitor: Visit) -> Response:
        """Ask before the secret is replaced."""
        it = await self._frame.ask(visitor, "get_webhook", Webhook)
        return self._frame.page(visitor, "rotate.html", it=it, overlaps_s=OVERLAPS_S)

    async def rotate_endpoint(self, visitor: Visit, form: Form) -> Response:
        """Replace the secret, and show the new one, this once."""
        it = await self._frame.ask(visitor, "get_webhook", Webhook)
        rotated = await self._frame.ask(
            visitor, "rotate_secret", RotatedSecret, body={"overlap_seconds": form.get("overlap_seconds", "86400")}
        )
        return self._frame.page(
            visitor,
            "secret.html",
            endpoint_id=it.id,
            endpoint_url=it.endpoint_url,
            secret=rotated.secret,
            examples=examples(),
            rotated=rotated,
        )

    async def confirm_delete(self, visitor: Visit) -> Response:
        """Ask before it is deleted."""
        it = await self._frame.ask(visitor, "get_webhook", Webhook)
        return self._frame.page(visitor, "delete.html", it=it)

    async def delete_endpoint(self, visitor: Visit, _: Form) -> Response:
        """Delete it."""
        await self._frame.ask(visitor, "delete_webhook", DeletedWebhook)
        return goto(HOME)

    async def test_endpoint(self, visitor: Visit, form: Form) -> Response:
        """Send a test, and show the answer: in its place on the page, or without script on the page anew."""
        fired: TestResult | None = None
        faults: Faults | None = None
        try:
            fired = await self._frame.ask(
                visitor, "test_webhook", TestResult, body={"event_type": form.get("event_type", "lead.created")}
            )
        except Problem as problem:
            if problem.status in {403, 404}:
                raise
            faults = Faults.of(problem)
        test: Values = {"fired": fired, "body": await self._answer_to(visitor, fired), "faults": faults}
        if request.headers.get("HX-Request"):
            it = await self._frame.ask(visitor, "get_webhook", Webhook)
            piece = self._frame.page(visitor, "test_result.html", it=it, test=test)
            piece.headers["HX-Trigger"] = "tested"  # upon which the page asks for its other parts anew
            return piece
        return await self._one(visitor, test)

    async def _answer_to(self, visitor: Visit, fired: TestResult | None) -> str:
        """The body of the endpoint's answer to a test; "" where there is none, or none was found in a moment."""
        if fired is None:
            return ""
        of_event = {"event_id": fired.test_event, "limit": 1}
        listed = await self._frame.ask(visitor, "list_deliveries", DeliveryList, query=of_event)
        if not listed.deliveries:
            return ""
        path = {"attempt_id": listed.deliveries[0].id}
        found = await self._frame.operations.ask(visitor.caller, "get_delivery", DeliveryShown, path=path)
        return found.response.body if found.response else ""

    async def _one(self, visitor: Visit, test: Values | None = None) -> Response:
        it = await self._frame.ask(visitor, "get_webhook", Webhook)
        recent = await self._frame.ask(
            visitor, "list_deliveries", DeliveryList, query={"subscription_id": it.id, "limit": STRIP}
        )
        recovered = await self._frame.ask(
            visitor, "list_recoveries", RecoveryList, query={"subscription_id": it.id, "limit": RECOVERIES}
        )
        return self._frame.page(
            visitor,
            "endpoint.html",
            it=it,
            health=health.of(it),
            recent=recent.deliveries,
            slowest_ms=max((one.duration_ms or 0 for one in recent.deliveries), default=0),
            types=await self._types(visitor),
            recoveries=recovered.recoveries,
            kinds=KINDS,
            test=test,
        )

    async def _form(self, visitor: Visit, it: Webhook | None, values: Values, faults: Faults | None = None) -> Response:
        status = 200 if faults is None else faults.status
        types = await self._types(visitor)
        return self._frame.page(
            visitor, "endpoint_form.html", status, it=it, values=values, types=types, faults=faults or Faults()
        )

    async def _types(self, visitor: Visit) -> EventTypeList:
        return await self._frame.ask(visitor, "list_event_types", EventTypeList)


def _values(form: Form) -> dict[str, object]:
    """What the form says. "All events" wins over what is ticked below it."""
    return {
        "endpoint_url": form.get("endpoint_url", "").strip(),
        "description": form.get("description", "").strip() or None,
        "events": [] if form.get("which") != "some" else form.getlist("events"),
        "propagate_trace_context": form.get("propagate_trace_context") == "true",
    }


def _none_chosen(form: Form) -> bool:
    """An empty filter means all types to the API: nobody shall get all of them by unticking the last box."""
    return form.get("which") == "some" and not form.getlist("events")


def install(frame: Frame) -> None:
    """Their addresses."""
    it = Endpoints(frame)
    one = f"{HOME}/<subscription_id>"
    frame.show(HOME, it.endpoints)
    frame.show(f"{HOME}/new", it.new_endpoint)
    frame.take(HOME, it.create_endpoint)
    frame.show(one, it.endpoint)
    frame.show(f"{one}/edit", it.edit_endpoint)
    frame.take(f"{one}/edit", it.change_endpoint)
    frame.take(f"{one}/switch", it.switch_endpoint)
    frame.show(f"{one}/rotate", it.confirm_rotate)
    frame.take(f"{one}/rotate", it.rotate_endpoint)
    frame.show(f"{one}/delete", it.confirm_delete)
    frame.take(f"{one}/delete", it.delete_endpoint)
    frame.take(f"{one}/test", it.test_endpoint)
