"""Every claim in this daemon's memory, from the moment it was made until it is recorded or given back."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from daemon.ids import DeliveryId, SubscriptionId
from daemon.model import Claim
from daemon.store.shards import SHARDS

Lease = tuple[DeliveryId, int]
"""A claim's key: the delivery and the number of the attempt. A delivery that was claimed anew is another one."""


@dataclass(slots=True)
class _Entry:
    claim: Claim
    since: float
    data_bytes: int


class Ledger:
    """Counts by shard, by subscription and by bytes."""

    def __init__(self) -> None:
        self._entries: dict[Lease, _Entry] = {}
        self._held_by: dict[SubscriptionId, int] = {}
        self._working = [0] * SHARDS
        self.data_bytes = 0
        """Of the events that are in memory, once for each claim."""

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def claiming(self, shards: Iterable[int]) -> Generator[None]:
        """While the block runs, claims of these shards may be on their way here: none of them counts as drained."""
        mine = tuple(shards)
        for shard in mine:
            self._working[shard] += 1
        try:
            yield
        finally:
            for shard in mine:
                self._working[shard] -= 1

    def add(self, claims: Iterable[Claim]) -> None:
        """These were claimed just now."""
        now = trio.current_time()
        for claim in claims:
            self._entries[claim.delivery_id, claim.attempt] = _Entry(claim, now, 0)
            self._held_by[claim.subscription_id] = self._held_by.get(claim.subscription_id, 0) + 1
            self._working[claim.shard] += 1

    def weigh(self, claim: Claim, data_bytes: int) -> None:
        """The claim's event has been loaded and has this size."""
        self._entries[claim.delivery_id, claim.attempt].data_bytes = data_bytes
        self.data_bytes += data_bytes

    def settle(self, delivery_id: DeliveryId, attempt: int) -> None:
        """The claim is recorded or given back: out of memory. Settling twice changes nothing."""
        entry = self._entries.pop((delivery_id, attempt), None)
        if entry is None:
            return
        claim = entry.claim
        self.data_bytes -= entry.data_bytes
        self._working[claim.shard] -= 1
        left = self._held_by[claim.subscription_id] - 1
        if left:
            self._held_by[claim.subscription_id] = left
        else:
            del self._held_by[claim.subscription_id]

    def settle_all_of(self, subscription_id: SubscriptionId) -> None:
        """Forget every claim of a subscription: they come back when their leases end."""
        for lease in [key for key, entry in self._entries.items() if entry.claim.subscription_id == subscription_id]:
            self.settle(*lease)

    def has_any_of(self, subscription_id: SubscriptionId) -> bool:
        """Whether any claim of the subscription is in memory."""
        return subscription_id in self._held_by

    def is_working(self, shard: int) -> bool:
        """Whether any claim of the shard is in memory, or may be on its way."""
        return self._working[shard] > 0

    def leases(self, *, older_than_s: float = 0.0) -> Sequence[Lease]:
        """The claims that have been in memory for at least so long."""
        before = trio.current_time() - older_than_s
        return [lease for lease, entry in self._entries.items() if entry.since <= before]
