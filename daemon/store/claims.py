"""What the two claiming statements share: the room that there is for claims, and the shape of their answers.

The delivery path's statements leave the planner no choice of joins. Its tables swing between empty and millions of
rows, and a plan that was made for the one meets the other: planned on an empty outbox, a batch of 1,000 out of 20,000
rows took 108 s, since all of the table was compared with all of a list. So rows are found again by
`ctid = ANY (ARRAY(…))`, a row's own values come from a JSON object by key, another table's row by LATERAL behind
OFFSET 0, which stays a look-up for each row, and `IN` stands before IS TRUE, which keeps it a hash.
tests/store/test_plans_for_other_times.py runs them on such plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from daemon.ids import SubscriptionId
from daemon.model import Claim, Event, FannedOut
from daemon.store.enveloping import enveloped


@dataclass(frozen=True, slots=True)
class Room:
    """How many claims each known subscription has room for, `default` for an unknown one; how long a claim is ours."""

    known: Mapping[SubscriptionId, int]
    default: int
    lease_s: float

    def parameters(self) -> dict[str, object]:
        """As the statements name them. Rooms are looked up in a JSON object: a join was planned as a loop in a loop."""
        return {
            "rooms": msgspec.json.encode(self.known).decode(),
            "default_room": self.default,
            "lease_s": self.lease_s,
        }


Place = tuple[int, str]
"""Where a look at the outbox ended: shard and customer, in the order of its key."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """Claims to send, subscriptions for which deliveries were held instead, and how many rows were looked at.

    Of the outbox: `events` are those of the claims that came along. `last` is the highest id that was taken of each
    shard from which any was. `deep` are the shards of which more waits than a look takes. `resume`: there may be more
    behind this place. `fanned_out` are the events that were taken, where they were asked for.
    """

    claims: list[Claim]
    held: list[SubscriptionId]
    seen: int
    events: list[Event] = field(default_factory=list[Event])
    last: dict[int, int] = field(default_factory=dict[int, int])
    deep: frozenset[int] = frozenset()
    resume: Place | None = None
    fanned_out: list[FannedOut] = field(default_factory=list[FannedOut])

    @classmethod
    def of(cls, rows: Iterable[Sequence[Any]]) -> Claimed:
        """From rows of nine columns, those of a Claim, or with customer, created_at and data of twelve.

        One without a delivery's id has instead: an event's type, fourth, and all else that an Event has; or an event's
        id, second, customer, traceparent and matched; a subscription, fifth, which is held; a count, last of nine; or a
        shard, sixth: with a count in place of an attempt and its last id, with a customer as the place, or alone, deep.
        """
        claims: list[Claim] = []
        held: list[SubscriptionId] = []
        events: list[Event] = []
        fanned_out: list[FannedOut] = []
        seen, resume = 0, None
        last: dict[int, int] = {}
        deep: set[int] = set()
        for row in rows:
            if row[0] is not None:
                claims.append(Claim(*row[:9]))
            elif row[3] is not None:
                events.append(enveloped(row[1], row[3], row[9], row[10], row[11], row[8], row[4]))
            elif row[1] is not None:
                fanned_out.append(FannedOut(row[1], row[9], row[4], row[8]))
            elif row[4] is not None:
                held.append(row[4])
            elif row[5] is None:
                seen = row[8]
            elif row[6] is not None:
                seen += row[6]
                last[row[5]] = row[8]
            elif row[9] is not None:
                resume = (row[5], row[9])
            else:
                deep.add(row[5])
        return cls(claims, held, seen, events, last, frozenset(deep), resume, fanned_out)


NOTHING: Final = Claimed([], [], 0)
