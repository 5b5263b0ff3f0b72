"""Identifiers: their shapes, how new ones are made, and the time that some of them carry."""

from __future__ import annotations

import re
import secrets
import time
from datetime import UTC, datetime
from typing import Final, NewType

CustomerId = NewType("CustomerId", str)
SubscriptionId = NewType("SubscriptionId", str)
EventId = NewType("EventId", str)
AttemptId = NewType("AttemptId", str)
RecoveryId = NewType("RecoveryId", str)
DeliveryId = NewType("DeliveryId", int)
"""Row id of a delivery that is not finished yet. Internal: it never leaves the daemon."""

CUSTOMER_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
SUBSCRIPTION_ID: Final = re.compile(r"whk_[0-9a-f]{24}")
EVENT_ID: Final = re.compile(r"[A-Za-z0-9_:-]{1,128}")
"""Both kinds: generated (`evt_` + 24 hex) and the emitter's own."""
GENERATED_EVENT_ID: Final = re.compile(r"evt_[0-9a-f]{24}")
LINK_ID: Final = re.compile(r"plk_[0-9a-f]{24}")
ATTEMPT_ID: Final = re.compile(r"dlv_[0-9a-f]{24}")
RECOVERY_ID: Final = re.compile(r"rec_[0-9a-f]{24}")


def new_subscription_id() -> SubscriptionId:
    """`whk_` + 24 random hex digits."""
    return SubscriptionId("whk_" + secrets.token_hex(12))


def new_attempt_id(created_at: datetime) -> AttemptId:
    """`dlv_` + 12 hex digits of the millisecond of `created_at` + 12 random ones: ids sort by time."""
    return AttemptId(f"dlv_{int(created_at.timestamp() * 1000):012x}{secrets.token_hex(6)}")


def new_event_id() -> EventId:
    """`evt_` + 12 hex digits of this millisecond + 12 random ones, as `dealix.emit` makes them."""
    return EventId(f"evt_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}")


def new_recovery_id() -> RecoveryId:
    """`rec_` + 12 hex digits of this millisecond + 12 random ones: ids sort by time."""
    return RecoveryId(f"rec_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}")


def time_of(identifier: str) -> datetime:
    """The millisecond that an attempt's id, or a generated event's, begins with.

    Raises ValueError where the id has none, or one outside the years 1970–9999.
    """
    try:
        return datetime.fromtimestamp(int(identifier[4:16], 16) / 1000, UTC)
    except (OverflowError, OSError) as e:
        raise ValueError(identifier) from e
