"""How often somebody may do what costs us and brings them nothing: guess keys, have test events sent.

Each process counts for itself, in memory, by the monotonic clock: N daemons let N times as much through. Nothing is
kept in the database, which the limit is there to spare.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

import trio

from api.errors import Problem

FAILURES_OF_ONE: Final = 60
FAILURES_OF_ONE_PER_S: Final = 1.0
"""A client with a wrong key in its configuration retries about so often; whoever guesses wants thousands a second."""
FAILURES_OF_ALL: Final = 600
FAILURES_OF_ALL_PER_S: Final = 20.0
"""Whatever the number of addresses they come from: 20 look-ups a second are 1 % of a core."""
ADDRESSES: Final = 4096
"""Counted at a time; the one that has failed least lately makes room. About 1 MiB."""
KNOWN_KEYS: Final = 1024
TEST_FIRES: Final = 30
TEST_FIRES_PER_S: Final = 0.5
"""Of one customer, over all subscriptions: a person at a form, and no load generator pointed at a third party."""


class Buckets:
    """`burst` at once and `per_s` in the long run for each of `size` keys. One float a key: when it is even again.

    The generic cell rate algorithm (ITU-T I.371): each token moves a key's time on by 1/per_s, and it may be ahead of
    the clock by as much as a burst.
    """

    def __init__(self, *, burst: int, per_s: float, size: int, clock: Callable[[], float] = trio.current_time) -> None:
        self._step_s = 1 / per_s
        self._ahead_s = (burst - 1) / per_s
        self._size = size
        self._clock = clock
        self._even_at: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._even_at)

    def wait_s(self, key: Hashable) -> float:
        """Seconds until there is a token; 0 where there is one."""
        return max(self._even_at.get(key, 0.0) - self._clock() - self._ahead_s, 0.0)

    def take(self, key: Hashable) -> None:
        """Take a token, whether or not there is one."""
        self._even_at[key] = max(self._even_at.get(key, 0.0), self._clock()) + self._step_s
        self._even_at.move_to_end(key)
        while len(self._even_at) > self._size:
            self._even_at.popitem(last=False)

    def put_back(self, key: Hashable) -> None:
        """Undo a `take`."""
        if key in self._even_at:
            self._even_at[key] -= self._step_s


class KeyGuessing:
    """Failed authentications: of each client address, and of all of them together.

    A token is taken before a key is looked up and put back when the key is good, so that a thousand guesses at once are
    not let in together. A key that was good a short while ago passes without one: whoever shares an address with an
    attacker, as all clients of one proxy do, goes on working.
    """

    def __init__(self) -> None:
        self._of_one = Buckets(burst=FAILURES_OF_ONE, per_s=FAILURES_OF_ONE_PER_S, size=ADDRESSES)
        self._of_all = Buckets(burst=FAILURES_OF_ALL, per_s=FAILURES_OF_ALL_PER_S, size=1)
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def begin(self, address: Hashable, digest: bytes | None) -> None:
        """Somebody at `address` shows a key with this digest, or (None) nothing like a key. Raises Problem 429."""
        if digest in self._known:
            return
        if wait_s := max(self._of_one.wait_s(address), self._of_all.wait_s(None)):
            raise too_many(wait_s, "Too many requests without a valid key. Wait as Retry-After says.")
        self._of_one.take(address)
        self._of_all.take(None)

    def good(self, address: Hashable, digest: bytes) -> None:
        """The key was valid."""
        if digest not in self._known:
            self.undecided(address, digest)
        self._known[digest] = None
        self._known.move_to_end(digest)
        while len(self._known) > KNOWN_KEYS:
            self._known.popitem(last=False)

    def bad(self, address: Hashable, digest: bytes) -> None:
        """The key was not, or no longer, valid."""
        if digest in self._known:
            del self._known[digest]
            self._of_one.take(address)
            self._of_all.take(None)

    def undecided(self, address: Hashable, digest: bytes) -> None:
        """The database could not be asked."""
        if digest not in self._known:
            self._of_one.put_back(address)
            self._of_all.put_back(None)


class Limits:
    """Everything that one process counts."""

    def __init__(self) -> None:
        self.key_guessing = KeyGuessing()
        self._test_fires = Buckets(burst=TEST_FIRES, per_s=TEST_FIRES_PER_S, size=ADDRESSES)

    def test_fire(self, customer_id: str) -> None:
        """A test event is about to be sent for this customer. Raises Problem 429."""
        if wait_s := self._test_fires.wait_s(customer_id):
            raise too_many(wait_s, "Too many test events were sent. Wait as Retry-After says.")
        self._test_fires.take(customer_id)


def too_many(wait_s: float, detail: str) -> Problem:
    """429, with word of when to come back."""
    return Problem(429, "rate_limited", detail, headers={"Retry-After": str(max(math.ceil(wait_s), 1))})
