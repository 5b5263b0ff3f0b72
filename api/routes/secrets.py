"""POST /webhooks/{id}/rotate-secret: a new secret, with an overlap in which the old one still signs."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from api.errors import not_found
from api.fields import Time
from api.operation import Answer, Call, NoQuery, Route, route
from api.routes.webhooks import owned
from api.services import WORK_S, Services
from api.verification import SECRET_WARNING
from daemon import clock
from daemon.store import subscriptions


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long both secrets sign: a day unless told, at most a week."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=604_800)] = 86_400


class RotatedSecret(msgspec.Struct, frozen=True):
    """The new secret, which is not shown again."""

    id: str
    secret: str
    secret_warning: str
    previous_secret_expires_at: Time | None


OVERLAP_WARNING = (
    " Until the old secret expires each request carries both signatures: in Dealix-Signature the old one's v1 stands "
    "last, in webhook-signature they are separated by a space. Accept a request if any of them fits."
)


def routes(services: Services) -> list[Route]:
    """The routes of this noun."""

    async def rotate_secret(call: Call[NoQuery, Rotation]) -> Answer:
        """Give a subscription a new secret.

        During the overlap requests are signed with both: in Dealix-Signature the old secret's v1 stands last, in
        webhook-signature the two are separated by a space. An overlap of 0 ends the old one at once.
        """
        async with services.pool.connection(WORK_S) as conn:
            row = await owned(conn, call.caller, call.path)
            rotated = await subscriptions.rotate(conn, services.ring, row.id, call.body.overlap_seconds)
        if rotated is None:  # deleted meanwhile
            raise not_found("webhook")
        expires_at = rotated.previous_secret_expires_at
        return Answer(
            200,
            RotatedSecret(
                id=row.id,
                secret=rotated.secret,
                secret_warning=SECRET_WARNING + (OVERLAP_WARNING if expires_at else ""),
                previous_secret_expires_at=clock.iso(expires_at) if expires_at else None,
            ),
        )

    return [
        route(
            "POST",
            "/webhooks/<subscription_id>/rotate-secret",
            rotate_secret,
            body=Rotation,
            body_optional=True,
            answers={200: RotatedSecret},
            problems=(404,),
        ),
    ]
