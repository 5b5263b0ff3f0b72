r"""The values that requests carry: their shapes, and the words in which a bad one is refused.

Patterns end in `\Z`, since Python's `$` lets a line feed pass; the API's document shows it as `$`, which in
ECMAScript means the same.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from api.errors import invalid

CUSTOMER_ID: Final = r"^[A-Za-z0-9_.:-]{1,64}\Z"
EVENT_ID: Final = r"^[A-Za-z0-9_:-]{1,128}\Z"
SUBSCRIPTION_ID: Final = r"^whk_[0-9a-f]{24}\Z"
ATTEMPT_ID: Final = r"^dlv_[0-9a-f]{24}\Z"
RECOVERY_ID: Final = r"^rec_[0-9a-f]{24}\Z"
LINK_ID: Final = r"^plk_[0-9a-f]{24}\Z"
EVENT_TYPE: Final = r"^[a-z0-9_.]{1,128}\Z"
PRINTABLE: Final = r"^[^\x00-\x1f\x7f]*\Z"

WORDS: Final = {
    CUSTOMER_ID: "must be 1 to 64 characters of A-Z a-z 0-9 _ . : -",
    EVENT_ID: "must be 1 to 128 characters of A-Z a-z 0-9 _ : -",
    SUBSCRIPTION_ID: "must be whk_ and 24 hex digits",
    ATTEMPT_ID: "must be dlv_ and 24 hex digits",
    EVENT_TYPE: "must be 1 to 128 characters of a-z 0-9 _ .",
    PRINTABLE: "must not contain control characters",
}
"""What a pattern means, for whoever did not match it."""

CustomerIdText = Annotated[str, Meta(pattern=CUSTOMER_ID, description="The tenant.", examples=["acme"])]
EventIdText = Annotated[str, Meta(pattern=EVENT_ID, description="An event's id, generated or the emitter's own.")]
SubscriptionIdText = Annotated[str, Meta(pattern=SUBSCRIPTION_ID)]
EventTypeFilter = Annotated[str, Meta(pattern=EVENT_TYPE, examples=["deal.won"])]
EventTypeText = Annotated[
    str, Meta(max_length=128, description="One of those that GET /event-types lists.", examples=["deal.won"])
]
EndpointUrlText = Annotated[
    str,
    Meta(
        description="https, at most 500 characters, no user info, no fragment; the host must be a public one.",
        extra_json_schema={"maxLength": 500, "format": "uri"},
        examples=["https://hooks.example.com/dealix"],
    ),
]
DescriptionText = Annotated[str, Meta(max_length=255, pattern=PRINTABLE)]
MomentText = Annotated[
    str,
    Meta(
        description="RFC 3339 with an offset or Z.",
        min_length=1,
        max_length=40,
        extra_json_schema={"format": "date-time"},
        examples=["2026-01-31T08:00:00Z"],
    ),
]
"""A moment in a query: kept as text by the decoder, which would take bare numbers too. See `moment`."""
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, examples=["2026-01-31T08:00:00.000Z"])]
"""A moment in an answer: UTC, milliseconds, Z."""

_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9000, 1, 1, tzinfo=UTC)


def moment(field: str, text: str) -> datetime:
    """The aware UTC datetime of an RFC 3339 text. Raises Problem 422; far outside any log it is clamped."""
    try:
        given = msgspec.convert(text, datetime, strict=True)
    except msgspec.ValidationError as e:
        raise invalid(field, "must be an RFC 3339 time such as 2026-01-31T08:00:00Z") from e
    if given.tzinfo is None:
        raise invalid(field, "must have an offset, or Z for UTC")
    return min(max(given, _EARLIEST), _LATEST).astimezone(UTC)
