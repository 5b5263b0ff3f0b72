"""Operational events: what the platform has to tell customers about their own endpoints. Types, words, examples.

They go to those subscriptions alone that ask for them by name, never to the one that they are about, and failures to
deliver them raise none. They are no rows of the catalogue: nobody emits them but the recorder, in its own transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FAILING: Final = "endpoint.failing"
DISABLED: Final = "endpoint.disabled"
RECOVERED: Final = "endpoint.recovered"
EXHAUSTED: Final = "delivery.exhausted"
RESERVED: Final = ("endpoint.", "delivery.")
"""No type of the catalogue may begin so."""
LEVELS: Final = (50, 75, 90)
"""Percent of `delivery.disable_after` at which an endpoint is said to be failing."""


@dataclass(frozen=True, slots=True)
class Operational:
    """One type. `example` is a payload as JSON text, `schema` its JSON Schema."""

    type: str
    description: str
    example: str
    schema: str


_HEAD: Final = '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {'
_ENDPOINT: Final = (
    '"subscription_id": {"type": "string", "pattern": "^whk_[0-9a-f]{24}$"}, "endpoint_host": {"type": "string"}'
)
_COUNT: Final = '{"type": "integer", "minimum": 1}'
_ABOUT: Final = '"subscription_id": "whk_0c1d2e3f4a5b6c7d8e9f0a1b", "endpoint_host": "hooks.example.com"'

OPERATIONAL: Final = (
    Operational(
        EXHAUSTED,
        "A delivery was given up after its last retry.",
        f'{{{_ABOUT}, "event_id": "evt_01a210887bfe91ca8973238b", "event_type": "deal.won", "attempt": 6, '
        '"status_code": 503}',
        f'{_HEAD}{_ENDPOINT}, "event_id": {{"type": "string"}}, "event_type": {{"type": "string"}}, '
        f'"attempt": {_COUNT}, "status_code": {{"type": ["integer", "null"]}}}}, "required": '
        '["subscription_id", "endpoint_host", "event_id", "event_type", "attempt", "status_code"]}',
    ),
    Operational(
        DISABLED,
        "An endpoint was disabled, by failures in a row or because it answered 410.",
        f'{{{_ABOUT}, "reason": "consecutive_failures", "consecutive_failures": 20}}',
        f'{_HEAD}{_ENDPOINT}, "reason": {{"enum": ["consecutive_failures", "gone"]}}, '
        f'"consecutive_failures": {_COUNT}}}, "required": '
        '["subscription_id", "endpoint_host", "reason", "consecutive_failures"]}',
    ),
    Operational(
        FAILING,
        "An endpoint has failed so often in a row that half, three quarters or nine tenths of the way to being "
        "disabled are gone.",
        f'{{{_ABOUT}, "level_percent": 50, "consecutive_failures": 10, "disable_after": 20}}',
        f'{_HEAD}{_ENDPOINT}, "level_percent": {{"enum": [50, 75, 90]}}, "consecutive_failures": {_COUNT}, '
        f'"disable_after": {_COUNT}}}, "required": '
        '["subscription_id", "endpoint_host", "level_percent", "consecutive_failures", "disable_after"]}',
    ),
    Operational(
        RECOVERED,
        "An endpoint that was failing, or was disabled by its failures, delivers again.",
        f"{{{_ABOUT}}}",
        f'{_HEAD}{_ENDPOINT}}}, "required": ["subscription_id", "endpoint_host"]}}',
    ),
)
TYPES: Final = tuple(one.type for one in OPERATIONAL)
