"""GET /stats: a customer's figures over some days."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.fields import CustomerIdText
from api.operation import Answer, Call, NoBody, Route, route
from api.services import WORK_S, Services
from daemon import clock
from daemon.store import stats
from daemon.store.stats import TypeFigures


class StatsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose figures, over how many UTC days, today included."""

    customer_id: CustomerIdText | UnsetType = UNSET
    period_days: Annotated[int, Meta(ge=1, le=90)] = 7


class SubscriptionCounts(msgspec.Struct, frozen=True):
    """Subscriptions as they are now."""

    total: int
    enabled: int
    disabled: int


class DeliveryFigures(msgspec.Struct, frozen=True):
    """Attempts over the period."""

    total: int
    success: int
    failed: int
    success_rate: Annotated[float, Meta(description="0 to 1, four decimals; 0 where there was no attempt.")]
    avg_latency_ms: Annotated[float, Meta(description="Of all attempts, one decimal; 0 where there was none.")]


class TypeCounts(msgspec.Struct, frozen=True):
    """Attempts of one event type over the period."""

    total: int
    success: int
    failed: int


class Stats(msgspec.Struct, frozen=True):
    """A customer's figures."""

    customer_id: str
    period_days: int
    subscriptions: SubscriptionCounts
    deliveries: DeliveryFigures
    by_event_type: dict[str, TypeCounts]


def routes(services: Services) -> list[Route]:
    """The routes of this noun."""

    async def get_stats(call: Call[StatsQuery, NoBody]) -> Answer:
        """Show a customer's figures.

        Whole UTC days, today included. An attempt counts on the day it was made; a delivery that needed three attempts
        counts as two failures and one success.
        """
        customer_id = call.caller.acting_for(call.query.customer_id or None)
        today = clock.now().date()
        first = today - timedelta(days=call.query.period_days - 1)
        async with services.pool.connection(WORK_S) as conn:
            figures = await stats.by_type(conn, customer_id, first=first, last=today)
            subscribed = await stats.subscriptions(conn, customer_id)
        return Answer(
            200,
            Stats(
                customer_id=customer_id,
                period_days=call.query.period_days,
                subscriptions=SubscriptionCounts(
                    subscribed.total, subscribed.enabled, subscribed.total - subscribed.enabled
                ),
                deliveries=_sum(figures),
                by_event_type={
                    one.event_type: TypeCounts(one.success + one.failed, one.success, one.failed) for one in figures
                },
            ),
        )

    return [route("GET", "/stats", get_stats, query=StatsQuery, answers={200: Stats})]


def _sum(figures: list[TypeFigures]) -> DeliveryFigures:
    success = sum(one.success for one in figures)
    total = success + sum(one.failed for one in figures)
    duration_ms = sum(one.duration_ms for one in figures)
    return DeliveryFigures(
        total=total,
        success=success,
        failed=total - success,
        success_rate=round(success / total, 4) if total else 0.0,
        avg_latency_ms=round(duration_ms / total, 1) if total else 0.0,
    )
