"""POST /webhooks/{id}/test: one request to the endpoint, now, and what came of it."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
import trio
from msgspec import UNSET, Meta, UnsetType

from api.errors import Problem, not_found, unavailable
from api.fields import EventTypeText
from api.operation import BASE, Answer, Call, NoQuery, Route, route
from api.routes.webhooks import owned, refuse_unknown
from api.services import WORK_S, Services
from daemon.errors import SealBroken

BESIDE_S: Final = 10.0
"""What a test-fire may take beside the request itself: its turn in the lanes, and recording it."""


class TestRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which type the test event has."""

    __test__ = False

    event_type: EventTypeText = "lead.created"


class TestDelivery(msgspec.Struct, frozen=True):
    """The one attempt of a test."""

    __test__ = False

    status_code: int | None
    success: bool
    duration_ms: int
    error: str | None


class EnableOffer(msgspec.Struct, frozen=True):
    """The request that enables the subscription: the endpoint has just shown that it accepts deliveries."""

    path: str
    body: dict[str, bool]
    message: str
    method: Literal["PATCH"] = "PATCH"


class TestResult(msgspec.Struct, frozen=True):
    """What came of a test. `enable` is there where it was delivered to a subscription that is disabled."""

    __test__ = False

    test_event: Annotated[str, Meta(description="The id of the event that was made for the test.")]
    matched: int
    delivered: int
    failed: int
    deliveries: list[TestDelivery]
    enable: EnableOffer | UnsetType = UNSET


def routes(services: Services) -> list[Route]:
    """The routes of this noun."""

    async def test_webhook(call: Call[NoQuery, TestRequest]) -> Answer:
        """Send a test event to the endpoint.

        One attempt at once, also to a disabled subscription, which stays disabled (the answer offers to enable it where
        it was delivered), and past an open breaker, which a success closes. Its payload is the type's example, with
        `"test": true` in it. It is recorded in the log and counts like any other attempt. 400 for an unknown type,
        409 where the secret cannot be read, 429 after 30 tests at once of one customer and one every 2 s.
        """
        async with services.pool.connection(WORK_S) as conn:
            row = await owned(conn, call.caller, call.path)
            await refuse_unknown(conn, [call.body.event_type])
        services.limits.test_fire(row.customer_id)
        try:
            with trio.fail_after(services.settings.delivery.timeout_s + BESIDE_S):
                fired = await services.test_fire(row.id, call.body.event_type)
        except SealBroken as e:
            raise Problem(
                409, "secret_unreadable", "The subscription's secret cannot be read here: rotate it, then try again."
            ) from e
        except trio.TooSlowError as e:
            raise unavailable("busy", "Too many slow requests are on their way. Try again soon.") from e
        if fired is None:  # deleted meanwhile
            raise not_found("webhook")
        return Answer(
            200,
            TestResult(
                test_event=fired.event_id,
                matched=1,
                delivered=int(fired.success),
                failed=int(not fired.success),
                deliveries=[TestDelivery(fired.status_code, fired.success, fired.duration_ms, fired.error)],
                enable=_offer(row.id) if fired.success and not row.enabled else UNSET,
            ),
        )

    return [
        route(
            "POST",
            "/webhooks/<subscription_id>/test",
            test_webhook,
            body=TestRequest,
            body_optional=True,
            answers={200: TestResult},
            problems=(404, 409, 429),
        ),
    ]


def _offer(subscription_id: str) -> EnableOffer:
    return EnableOffer(
        path=f"{BASE}/webhooks/{subscription_id}",
        body={"enabled": True},
        message="The test was delivered, and the subscription is disabled: enable it, and what it holds is sent.",
    )
