"""What the two claiming statements share: the room that there is for claims, and the shape of their answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.ids import SubscriptionId
from daemon.model import Claim


@dataclass(frozen=True, slots=True)
class Room:
    """How many claims each known subscription has room for, `default` for an unknown one; how long a claim is ours."""

    known: Mapping[SubscriptionId, int]
    default: int
    lease_s: float

    def parameters(self) -> dict[str, object]:
        """As the statements name them."""
        return {
            "ids": list(self.known),
            "rooms": list(self.known.values()),
            "default_room": self.default,
            "lease_s": self.lease_s,
        }


@dataclass(frozen=True, slots=True)
class Claimed:
    """Claims to send, subscriptions for which deliveries were held instead, and how many rows were looked at.

    `last` is the highest id that was taken from the outbox, for each shard from which any was.
    """

    claims: list[Claim]
    held: list[SubscriptionId]
    seen: int
    last: dict[int, int] = field(default_factory=dict[int, int])

    @classmethod
    def of(cls, rows: Iterable[Sequence[Any]]) -> Claimed:
        """From rows of nine columns: those of a Claim, or NULL but for one of three.

        A subscription; a count in the last column; a shard, its count in place of an attempt, and its last id.
        """
        claims: list[Claim] = []
        held: list[SubscriptionId] = []
        seen = 0
        last: dict[int, int] = {}
        for row in rows:
            if row[0] is not None:
                claims.append(Claim(*row))
            elif row[4] is not None:
                held.append(row[4])
            elif row[5] is not None:
                seen += row[6]
                last[row[5]] = row[8]
            else:
                seen = row[8]
        return cls(claims, held, seen, last)
