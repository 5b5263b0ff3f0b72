"""The wall clock, for stamps that are signed or shown. Durations use `trio.current_time()`, due times the database."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """The time as an aware UTC datetime, microsecond resolution."""
    return datetime.now(UTC)


def unix_s() -> int:
    """The time in whole Unix seconds, as the signatures carry it."""
    return int(time.time())


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and `Z`, the form of every time in the HTTP API."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
