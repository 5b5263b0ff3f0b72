"""The way that a recovery takes through log or events, and what it finds there to be sent once more.

A position is a UTC day and a place in it, so that the walk can stop anywhere and no list of what is to be sent is kept.
`failed` walks the customer's failed attempts, whose number is what it costs; the other kinds walk the customer's
events. Either goes day by day, by an index of that day's partition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Final, LiteralString

import trio

from daemon import clock
from daemon.ids import EventId
from daemon.policy.operational import TYPES
from daemon.store.connection import Connection
from daemon.store.deliveries import id_at
from daemon.store.events import AHEAD, SLACK, bounds_of_day
from daemon.store.recoveries import Kind, Scope

LOOK: Final = 500
"""Rows looked at in one step: a walk through what does not fit costs a millisecond or two at a time."""
COUNT_LOOK: Final = 5000


@dataclass(frozen=True, slots=True)
class Position:
    """Where a walk stands: rows of `day` with ids above `place` come next. `walked`: it has reached its end."""

    day: date
    place: str = ""
    walked: bool = False

    @classmethod
    def first(cls, scope: Scope) -> Position:
        """Where the walk of a recovery begins: nothing of an event is older than its emission."""
        return cls(scope.since.astimezone(UTC).date())


@dataclass(frozen=True, slots=True)
class Found:
    """An event to be sent once more after `attempt` attempts. `place` is where the walk found it."""

    place: str
    event_id: EventId
    event_day: date
    event_type: str
    attempt: int


# Never prepared: the bounds on created_at leave one partition of what is walked, and few of what is asked beside it, as
# soon as they are known. Indexes: attempts_customer_failed of the day, then events_id of the event's day,
# attempts_event, deliveries_duty. Locks nothing. Only the newest attempt of an event stands for it, so that each is
# found once, and only one from before the recovery began, so that the walk does not meet its own. A retry that waits
# for its time counts as failed.
_FAILED: Final = """
    WITH looked AS (
        SELECT a.id, a.subscription_id, a.event_id, a.event_day, a.event_type, a.attempt
        FROM dealix.attempts a
        WHERE a.customer_id = %(customer_id)s AND NOT a.success
          AND a.id > %(place)s AND a.id < %(ceiling)s
          AND a.created_at >= %(low)s AND a.created_at < %(high)s
        ORDER BY a.id
        LIMIT %(look)s
    ), fit AS (
        SELECT l.id AS place, l.event_id, l.event_day, l.event_type, l.attempt
        FROM looked l
        CROSS JOIN LATERAL (
            SELECT
            FROM dealix.events e
            WHERE e.customer_id = %(customer_id)s AND e.id = l.event_id
              AND e.created_at >= %(since)s AND e.created_at < %(until)s
              AND e.created_at >= l.event_day::timestamp AT TIME ZONE 'UTC'
              AND e.created_at < (l.event_day + 1)::timestamp AT TIME ZONE 'UTC'
            LIMIT 1
        ) AS kept
        WHERE l.subscription_id = %(subscription_id)s
          AND NOT EXISTS (
              SELECT FROM dealix.attempts a
              WHERE a.event_id = l.event_id AND a.subscription_id = %(subscription_id)s
                AND (a.attempt > l.attempt OR a.success)
                AND a.created_at >= %(log_low)s AND a.created_at < %(log_high)s)
          AND NOT EXISTS (
              SELECT FROM dealix.deliveries d
              WHERE d.event_id = l.event_id AND d.subscription_id = %(subscription_id)s
                AND (d.claimed OR d.due IS NULL))
          AND NOT EXISTS (
              SELECT FROM dealix.test_events t WHERE t.customer_id = %(customer_id)s AND t.event_id = l.event_id)
        ORDER BY l.id
        LIMIT %(take)s
    )
"""
# As above; indexes: events_id of the day, then attempts_event, deliveries_duty. What waits for fan-out or has a row in
# the queue is on its way already.
_EMITTED: Final = """
    WITH looked AS (
        SELECT e.id, e.type, e.created_at
        FROM dealix.events e
        WHERE e.customer_id = %(customer_id)s AND e.id > %(place)s
          AND e.created_at >= %(low)s AND e.created_at < %(high)s
        ORDER BY e.id
        LIMIT %(look)s
    ), fit AS (
        SELECT l.id AS place, l.id AS event_id, %(day)s::date AS event_day, l.type AS event_type,
               coalesce(tried.attempt, 0) AS attempt
        FROM looked l
        LEFT JOIN LATERAL (
            SELECT max(a.attempt) AS attempt
            FROM dealix.attempts a
            WHERE a.event_id = l.id AND a.subscription_id = %(subscription_id)s
              AND a.created_at >= %(log_low)s AND a.created_at < %(log_high)s
        ) AS tried ON true
        WHERE l.created_at >= %(since)s AND l.created_at < %(until)s
          AND (%(wanted)s::text[] = '{}' OR l.type = ANY (%(wanted)s::text[]))
          AND l.type <> ALL (%(operational)s::text[])
          AND (tried.attempt IS NULL OR NOT %(missed)s)
          AND NOT EXISTS (
              SELECT FROM dealix.deliveries d
              WHERE d.event_id = l.id AND d.subscription_id = %(subscription_id)s)
          AND NOT EXISTS (
              SELECT FROM dealix.outbox o
              WHERE o.shard = dealix.shard_of(%(customer_id)s) AND o.customer_id IN (%(customer_id)s, '')
                AND o.event_id = l.id
                AND %(subscription_id)s = ANY (o.subscription_ids))
          AND NOT EXISTS (
              SELECT FROM dealix.test_events t WHERE t.customer_id = %(customer_id)s AND t.event_id = l.id)
        ORDER BY l.id
        LIMIT %(take)s
    )
"""
# The last row tells how far the look came.
_FIND: Final = """
    SELECT place, event_id, event_day, event_type, attempt FROM fit
    UNION ALL
    SELECT max(id), NULL, NULL, NULL, count(*) FROM looked
"""
_COUNT: Final = """
    SELECT max(looked.id), count(*), (SELECT count(*) FROM fit) FROM looked
"""
_FIND_FAILED: Final = _FAILED + _FIND
_FIND_EMITTED: Final = _EMITTED + _FIND
_COUNT_FAILED: Final = _FAILED + _COUNT
_COUNT_EMITTED: Final = _EMITTED + _COUNT


@dataclass(frozen=True, slots=True)
class Walk:
    """One recovery's way. `wanted`: the types that the subscription wants, none for all.

    `started_at`: attempts from then on are the recovery's own doing.
    """

    scope: Scope
    wanted: Sequence[str]
    started_at: datetime

    async def count(self, conn: Connection, *, time_s: float) -> tuple[int, bool]:
        """How many deliveries lie on the whole way, and whether the time was enough to count them all."""
        statement = _by_kind(self.scope.kind, _COUNT_FAILED, _COUNT_EMITTED)
        position = Position.first(self.scope)
        found = 0
        stop_at = trio.current_time() + time_s
        while not position.walked:
            if trio.current_time() > stop_at:
                return found, False
            parameters = self._parameters(position, look=COUNT_LOOK, take=None)
            ((last, looked, fit),) = await (await conn.execute(statement, parameters, prepare=False)).fetchall()
            found += fit
            position = self._after(position, looked=looked, look=COUNT_LOOK, last=last)
        return found, True

    async def find(self, conn: Connection, position: Position, *, take: int) -> tuple[list[Found], Position]:
        """The next events to be sent, at most `take`, and where the walk stands after them.

        None may be found and the walk stand further all the same: it looks at `LOOK` rows at a time.
        """
        statement = _by_kind(self.scope.kind, _FIND_FAILED, _FIND_EMITTED)
        parameters = self._parameters(position, look=LOOK, take=take)
        *rows, (last, *_, looked) = await (await conn.execute(statement, parameters, prepare=False)).fetchall()
        found = [Found(*row) for row in rows]  # in the order of their places, which is the database's, not Python's
        if len(found) == take:
            return found, replace(position, place=found[-1].place)
        return found, self._after(position, looked=looked, look=LOOK, last=last)

    def _parameters(self, position: Position, *, look: int, take: int | None) -> dict[str, object]:
        low, high = bounds_of_day(position.day)
        return {
            "customer_id": self.scope.customer_id,
            "subscription_id": self.scope.subscription_id,
            "since": self.scope.since,
            "until": self.scope.until,
            "wanted": list(self.wanted),
            "operational": list(TYPES),  # told at their time, or not at all
            "missed": self.scope.kind == "missed",
            "day": position.day,
            "place": position.place,
            "ceiling": id_at(self.started_at),
            "low": low,
            "high": high,
            "log_low": self.scope.since - SLACK,
            "log_high": clock.now() + AHEAD,
            "look": look,
            "take": take,
        }

    def _after(self, position: Position, *, looked: int, look: int, last: str | None) -> Position:
        """Where it stands after a look that brought `looked` rows up to `last` and that nothing cut short."""
        if last is not None and looked == look:
            return replace(position, place=last)
        # A failure is in the log of the day on which it happened, an event among those of the day of its emission.
        end = self.started_at if self.scope.kind == "failed" else self.scope.until
        following = position.day + timedelta(days=1)
        return Position(following, walked=following > end.astimezone(UTC).date())


def _by_kind(kind: Kind, failed: LiteralString, emitted: LiteralString) -> LiteralString:
    return failed if kind == "failed" else emitted
