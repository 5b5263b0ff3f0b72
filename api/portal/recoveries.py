"""Recover: what an endpoint missed is counted, sent once more beside live traffic, and watched on its way."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from quart import Response, request

from api.errors import Problem
from api.portal.endpoints import HOME as ENDPOINTS
from api.portal.endpoints import KINDS
from api.portal.forms import Faults
from api.portal.frame import Frame, goto
from api.portal.visit import Form, Visit
from api.routes.recoveries import RecoveryCount, RecoveryShown
from api.routes.webhooks import Webhook
from daemon import clock

HOME: Final = "/portal/recoveries"
PERIODS_S: Final = {
    3600: "The last hour",
    86_400: "The last day",
    604_800: "The last week",
    2_592_000: "The last 30 days",
}
STATES: Final = {"running": "Running", "finished": "Finished", "cancelled": "Cancelled"}


class Recoveries:
    """The views."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    async def choose_recovery(self, visitor: Visit) -> Response:
        """What is to be sent once more."""
        return await self._form(visitor, {"period_s": "86400", "status": "failed"})

    async def begin_recovery(self, visitor: Visit, form: Form) -> Response:
        """Count it, or begin it and go where its progress is."""
        period_s = form.get("period_s", "")
        seconds = int(period_s) if period_s in map(str, PERIODS_S) else 86_400
        chosen = {"period_s": str(seconds), "status": form.get("status", "")}
        scope = {"since": clock.iso(clock.now() - timedelta(seconds=seconds)), "status": chosen["status"]}
        counted: RecoveryCount | None = None
        try:
            if "count" in form:
                body = scope | {"dry_run": True}
                counted = await self._frame.ask(visitor, "recover_webhook", RecoveryCount, body=body)
            else:
                begun = await self._frame.ask(visitor, "recover_webhook", RecoveryShown, body=scope)
                return goto(f"{HOME}/{begun.id}")
        except Problem as problem:
            if problem.status == 404:
                raise
            return await self._form(visitor, chosen, faults=Faults.of(problem))
        return await self._form(visitor, chosen, counted=counted)

    async def recovery(self, visitor: Visit) -> Response:
        """How far it is: the page, or for a page that is open its moving part alone."""
        it = await self._frame.ask(visitor, "get_recovery", RecoveryShown)
        template = "recovery_progress.html" if request.headers.get("HX-Request") else "recovery.html"
        return self._frame.page(visitor, template, it=it, kinds=KINDS, recovery_states=STATES)

    async def cancel_recovery(self, visitor: Visit, _: Form) -> Response:
        """Begin nothing more of it."""
        it = await self._frame.ask(visitor, "cancel_recovery", RecoveryShown)
        return goto(f"{HOME}/{it.id}")

    async def _form(
        self,
        visitor: Visit,
        chosen: dict[str, str],
        *,
        counted: RecoveryCount | None = None,
        faults: Faults | None = None,
    ) -> Response:
        it = await self._frame.ask(visitor, "get_webhook", Webhook)
        return self._frame.page(
            visitor,
            "recover.html",
            200 if faults is None else faults.status,
            it=it,
            chosen=chosen,
            counted=counted,
            faults=faults or Faults(),
            periods=PERIODS_S,
            kinds=KINDS,
        )


def install(frame: Frame) -> None:
    """Their addresses."""
    it = Recoveries(frame)
    frame.show(f"{ENDPOINTS}/<subscription_id>/recover", it.choose_recovery)
    frame.take(f"{ENDPOINTS}/<subscription_id>/recover", it.begin_recovery)
    frame.show(f"{HOME}/<recovery_id>", it.recovery)
    frame.take(f"{HOME}/<recovery_id>/cancel", it.cancel_recovery)
