"""/ops: what the whole service is doing, for whoever runs it."""

from __future__ import annotations

from typing import Final

from quart import Response, request

from api.errors import Problem
from api.portal.forms import Faults
from api.portal.frame import Frame, goto
from api.portal.visit import OPERATORS, Form, Visit
from api.routes.portal_links import PortalLink
from api.services import WORK_S
from daemon.store import ops

LAG_S: Final = 5.0
"""A delivery that has been due for longer than this is late: daemons look twice a second."""


class Ops:
    """The views."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    async def ops(self, visitor: Visit) -> Response:
        """All of it: the page, or for a page that is open its moving part alone."""
        moving = bool(request.headers.get("HX-Request"))
        return await self._show(visitor, "ops_now.html" if moving else "ops.html")

    async def link_customer(self, visitor: Visit, form: Form) -> Response:
        """Make a link to a customer's portal, and show it, this once."""
        body = {"customer_id": form.get("customer_id", "").strip()}
        try:
            made = await self._frame.ask(visitor, "create_portal_link", PortalLink, body=body)
        except Problem as problem:
            return await self._show(visitor, "ops.html", faults=Faults.of(problem))
        return await self._show(visitor, "ops.html", link=made)

    async def _show(
        self, visitor: Visit, template: str, *, link: PortalLink | None = None, faults: Faults | None = None
    ) -> Response:
        services = self._frame.services
        async with services.pool.connection(WORK_S) as conn:
            queues = await ops.queues(conn)
            lag_s = max(queues.lag_s, await ops.outbox_age_s(conn))
            return self._frame.page(
                visitor,
                template,
                200 if faults is None else faults.status,
                queues=queues,
                lag_s=lag_s,
                is_late=lag_s > LAG_S,
                counted=ops.COUNTED,
                rate=await ops.rate(conn),
                slowest=await ops.slowest(conn),
                troubles=await ops.troubles(conn),
                replicas=await ops.replicas(conn),
                server=await ops.server(conn),
                readiness=services.readiness(),
                pool=services.pool.statistics(),
                link=link,
                faults=faults or Faults(),
            )


async def ops_home(_: Visit) -> Response:
    """With a slash at the end it is the same page."""
    return goto(OPERATORS.path)


def install(frame: Frame) -> None:
    """Their addresses."""
    it = Ops(frame)
    frame.show(OPERATORS.path, it.ops, realm=OPERATORS)
    frame.take(OPERATORS.path, it.link_customer, realm=OPERATORS)
    frame.show(f"{OPERATORS.path}/", ops_home, realm=OPERATORS, open_to_anyone=True)
