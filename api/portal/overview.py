"""The first page: how deliveries went over a day, a week or a month, and what wants attention."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from quart import Response, request

from api.portal import health
from api.portal.frame import Frame, goto
from api.portal.series import DAY, SPANS, Period, Point, Series, fold
from api.portal.visit import Visit
from api.routes.deliveries import DeliveryList
from api.routes.webhooks import WebhookList
from api.services import WORK_S
from daemon import clock
from daemon.ids import CustomerId
from daemon.store import stats

FAILURES: Final = 5


class Overview:
    """The views."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    async def overview(self, visitor: Visit) -> Response:
        """Figures and charts; a newcomer without an endpoint is led to the first one instead."""
        asked = request.args.get("period", "24h")
        period = asked if asked in SPANS else "24h"
        subscribed = await self._frame.ask(visitor, "list_webhooks", WebhookList, query={"limit": 100})
        failures = await self._frame.ask(
            visitor, "list_deliveries", DeliveryList, query={"failed_only": True, "limit": FAILURES}
        )
        series = await self._series(visitor.caller.acting_for(None), period)
        troubled = [(one, it) for one in subscribed.subscriptions if (it := health.of(one)).tone in {"bad", "warn"}]
        return self._frame.page(
            visitor,
            "overview.html",
            period=period,
            periods=list(SPANS),
            endpoints=subscribed.subscriptions,
            troubled=troubled,
            failures=failures.deliveries,
            series=series,
            chart=_chart(series.points),
        )

    async def _series(self, customer_id: CustomerId, period: Period) -> Series:
        span, now = SPANS[period], clock.now()
        first = span.first(now)
        async with self._frame.services.pool.connection(WORK_S) as conn:
            if span.step == DAY:
                slices = await stats.by_day(conn, customer_id, first=first.date())
            else:
                slices = await stats.by_hour(conn, customer_id, first=first)
        return fold(slices, span, now)


def _chart(points: Sequence[Point]) -> str:
    """What static/charts.js draws: a list for each line, Unix seconds first."""
    return json.dumps(
        {
            "times": [int(one.starts_at.timestamp()) for one in points],
            "success": [one.success for one in points],
            "failed": [one.failed for one in points],
            "rate": [None if one.rate is None else round(one.rate * 100, 2) for one in points],
            "p50": [_rounded(one.p50_ms) for one in points],
            "p99": [_rounded(one.p99_ms) for one in points],
        }
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


async def _home(_: Visit) -> Response:
    return goto("/portal/")


def install(frame: Frame) -> None:
    """Their addresses."""
    frame.show("/portal/", Overview(frame).overview)
    frame.show("/portal", _home, open_to_anyone=True)
