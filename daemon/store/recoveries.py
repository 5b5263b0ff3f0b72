"""Recoveries as people ask for them: begun, looked at, cancelled. How they go on is in `recovering`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from daemon.ids import CustomerId, RecoveryId, SubscriptionId, new_recovery_id
from daemon.store.connection import Connection
from daemon.store.shards import shard_of

Kind = Literal["failed", "missed", "all"]
"""What of a subscription's events is sent once more.

failed   those whose newest attempt did not deliver, and that never were delivered
missed   those that it wants and that were never due to it: emitted while it was disabled, or before it was made, or
         before it wanted their type
all      every one that it wants, delivered ones too
"""
State = Literal["running", "finished", "cancelled"]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a recovery is about: events emitted from `since` on and before `until`."""

    customer_id: CustomerId
    subscription_id: SubscriptionId
    kind: Kind
    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class Recovery:
    """A recovery as it stands. `queued` is how many deliveries it was found to be at the start.

    `exact` False: there were more than could be counted in the time. `done` were delivered, `failed` were attempted
    and not delivered. What of `queued` is missing from both is still to come; or, once it has ended, had been brought
    to an end by somebody else meanwhile, or was left where it was.
    """

    id: RecoveryId
    scope: Scope
    state: State
    queued: int
    exact: bool
    done: int
    failed: int
    created_at: datetime
    ended_at: datetime | None


_COLUMNS: Final = """
    SELECT id, customer_id, subscription_id, kind, since, until, state, queued, exact, done, failed, created_at,
           ended_at
"""

# One that runs keeps others of its subscription out: index recoveries_running.
_INSERT: Final = """
    INSERT INTO dealix.recoveries (id, customer_id, subscription_id, shard, kind, since, until, queued, exact, day)
    VALUES (%(id)s, %(customer_id)s, %(subscription_id)s, %(shard)s, %(kind)s, %(since)s, %(until)s, %(queued)s,
            %(exact)s, %(day)s)
    ON CONFLICT (subscription_id) WHERE state = 'running' DO NOTHING
    RETURNING id
"""


async def begin(conn: Connection, scope: Scope, *, queued: int, exact: bool) -> Recovery | None:
    """A new recovery, which the owner of the shard finds by itself; None where one of this subscription is running."""
    parameters = {
        "id": new_recovery_id(),
        "customer_id": scope.customer_id,
        "subscription_id": scope.subscription_id,
        "shard": shard_of(scope.customer_id),
        "kind": scope.kind,
        "since": scope.since,
        "until": scope.until,
        "queued": queued,
        "exact": exact,
        "day": scope.since.astimezone(UTC).date(),
    }
    row = await (await conn.execute(_INSERT, parameters)).fetchone()
    return None if row is None else await get(conn, row[0])


_GET: Final = f"""{_COLUMNS}
    FROM dealix.recoveries
    WHERE id = %(id)s
"""


async def get(conn: Connection, recovery_id: str) -> Recovery | None:
    """One recovery, of whichever customer; None where there is none, or none any more."""
    row = await (await conn.execute(_GET, {"id": recovery_id})).fetchone()
    return None if row is None else _recovery(row)


# Index recoveries_list, backwards: a customer has few.
_PAGE: Final = f"""{_COLUMNS}
    FROM dealix.recoveries
    WHERE customer_id = %(customer_id)s AND id < %(before)s
      AND (%(subscription_id)s::text IS NULL OR subscription_id = %(subscription_id)s)
    ORDER BY id DESC
    LIMIT %(limit)s
"""
_AFTER_ALL: Final = "rec_g"


async def page(
    conn: Connection, customer_id: CustomerId, *, subscription_id: str | None, limit: int, before: str | None = None
) -> list[Recovery]:
    """Up to `limit` of a customer's recoveries (of one subscription), newest first; those with ids below `before`."""
    cursor = await conn.execute(
        _PAGE,
        {
            "customer_id": customer_id,
            "subscription_id": subscription_id,
            "limit": limit,
            "before": before or _AFTER_ALL,
        },
    )
    return [_recovery(row) for row in await cursor.fetchall()]


# Waits for the step that its owner may be making at this moment: some milliseconds.
_CANCEL: Final = """
    UPDATE dealix.recoveries SET state = 'cancelled', ended_at = clock_timestamp()
    WHERE id = %(id)s AND state = 'running'
"""


async def cancel(conn: Connection, recovery_id: str) -> bool:
    """Send nothing more of it, the few on their way apart. False where it had ended before."""
    return (await conn.execute(_CANCEL, {"id": recovery_id})).rowcount == 1


def _recovery(row: Sequence[Any]) -> Recovery:
    return Recovery(row[0], Scope(*row[1:6]), *row[6:])
