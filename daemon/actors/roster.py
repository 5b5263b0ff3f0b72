"""Which actors live, and who gets which claim.

Actors are started when work for their subscription arrives and leave when it is done: 100,000 subscriptions must not
cost 100,000 tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date
from typing import Final

import trio

from daemon.actors.delivery import MAILBOX, Delivery, claims_of
from daemon.actors.doorbell import Doorbell
from daemon.actors.ledger import Lease, Ledger
from daemon.actors.pace import FIRST_WINDOW
from daemon.actors.supervise import guard, keep
from daemon.actors.tools import Tools
from daemon.errors import DatabaseUnavailable
from daemon.ids import CustomerId, EventId, SubscriptionId
from daemon.log import get
from daemon.model import AttemptRecord, Claim, Event, Job
from daemon.store import queue
from daemon.store.claims import Claimed
from daemon.store.connection import Connection
from daemon.store.enveloping import load_events
from daemon.store.pool import Pool
from daemon.store.record import Health

log = get("roster")

LEASE_S: Final = 60.0
"""How long a claim stays ours without word from us. Only a frozen or vanished daemon lets it end."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""Event bytes in memory; over it everything is held, and an actor that has something in hand fetches nothing."""
EXTEND_S: Final = 15.0
IDLE_LOOK_S: Final = 1.0
QUERY_S: Final = 5.0
PAUSE_S: Final = 0.2
QUIET_LOOK_S: Final = 0.02


class Roster:
    """The registry of one daemon. Its methods run in whoever calls; no await stands between reading and writing."""

    def __init__(self, pool: Pool, tools: Tools) -> None:
        self.ledger = Ledger()
        self._pool = pool
        self._tools = tools
        self._actors: dict[SubscriptionId, Delivery] = {}
        self._nursery: trio.Nursery | None = None
        self._returns: list[tuple[Claim, bool]] = []
        self._return_bell = Doorbell()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """House the actors, keep the leases of what stays in memory, give back what cannot be sent. Never ends."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(keep, "leases", self._extend_leases)
            self._nursery.start_soon(keep, "returns", self._give_back)
            self._nursery.start_soon(keep, "idle", self._dismiss_idle)
            task_status.started()
            await trio.sleep_forever()

    # -- room -------------------------------------------------------------------------------------------------------

    def rooms(self) -> dict[SubscriptionId, int]:
        """How many more claims each living actor has room for, where that is less than `default_room`."""
        default = self.default_room()
        return {key: room for key, actor in self._actors.items() if (room := actor.room()) < default}

    def window(self, subscription_id: SubscriptionId) -> int:
        """How many requests at a time a subscription's endpoint gets now."""
        actor = self._actors.get(subscription_id)
        return FIRST_WINDOW if actor is None else actor.window

    def default_room(self) -> int:
        """How many claims a subscription without an actor has room for."""
        return 0 if self.is_full() else MAILBOX

    def is_full(self) -> bool:
        """Whether there are so many bytes in memory that an actor should fetch no more than it can send."""
        return self.ledger.data_bytes >= MAX_BYTES

    def versions(self) -> dict[SubscriptionId, int]:
        """The configuration version that each living actor works with."""
        return {key: actor.version for key, actor in self._actors.items()}

    def counts(self) -> tuple[int, int]:
        """Living actors, and claims in memory."""
        return len(self._actors), len(self.ledger)

    def waiting(self) -> int:
        """Claims that lie in mailboxes."""
        return sum(actor.waiting for actor in self._actors.values())

    async def quiet(self) -> None:
        """Wait until no request is going on and every result is with the recorder."""
        while any(actor.in_flight for actor in self._actors.values()):  # noqa: ASYNC110 - once in a process' life
            await trio.sleep(QUIET_LOOK_S)

    # -- work comes -------------------------------------------------------------------------------------------------

    async def take(self, conn: Connection, claimed: Claimed, *, term: int) -> None:
        """Hand claims to their actors, starting those that are missing; tell actors that something is held for them.

        Loads the events that did not come along, and the configuration where it is not known or older than the claim
        saw it. What cannot be handed over, because a query failed or the caller is cancelled, is given back. `term` is
        the fence's at the claim.
        """
        claims = claimed.claims
        self.ledger.add(claims)
        left = {(c.delivery_id, c.attempt): c for c in claims}
        try:
            if claims:
                await self._know(conn, claims)
                await self._hand_over(conn, claimed, left, term)
        finally:
            self.return_claims(left.values(), hold=False)
        for subscription_id in claimed.held:
            if (actor := self._actors.get(subscription_id)) is not None:
                actor.has_backlog()

    async def _know(self, conn: Connection, claims: Sequence[Claim]) -> None:
        unknown = {
            c.subscription_id
            for c in claims
            if (actor := self._actors.get(c.subscription_id)) is None or actor.version < c.version
        }
        if unknown:
            await self._load(conn, unknown)

    async def _load(self, conn: Connection, ids: Iterable[SubscriptionId]) -> set[SubscriptionId]:
        read_at = trio.current_time()
        configs = await queue.load_configs(conn, ids)
        for config in configs:
            if (actor := self._actors.get(config.id)) is not None:
                actor.adopt(config, read_at)
            else:
                self._start(Delivery(config, read_at, self, self._tools))
        return {config.id for config in configs}

    def _start(self, actor: Delivery) -> None:
        if self._nursery is None:
            raise RuntimeError("the roster was given work before it ran")
        self._actors[actor.id] = actor
        self._nursery.start_soon(self._house, actor)

    async def _house(self, actor: Delivery) -> None:
        if not await guard("delivery", actor.run, subscription_id=actor.id):
            # A bug. What it had sent, perhaps, comes back as interrupted when the leases end.
            del self._actors[actor.id]
            self.ledger.settle_all_of(actor.id)

    async def _hand_over(self, conn: Connection, claimed: Claimed, left: dict[Lease, Claim], term: int) -> None:
        events = await self._events(conn, claimed)
        expired: list[Claim] = []
        for claim in claimed.claims:
            actor = self._actors.get(claim.subscription_id)
            if actor is None:  # deleted since it was claimed: held, it is purged
                self.return_claims([left.pop((claim.delivery_id, claim.attempt))], hold=True)
            elif (event := events.get((actor.customer_id, claim.event_id))) is None:
                # Retention removes an event after its deliveries have ended, but for those in hand.
                expired.append(claim)
            else:
                del left[claim.delivery_id, claim.attempt]
                self.ledger.weigh(claim, len(event.body))
                actor.offer(Job(claim, event, term))
        if expired:
            await queue.expire(conn, expired)
        for claim in expired:
            del left[claim.delivery_id, claim.attempt]
            self.ledger.settle(claim.delivery_id, claim.attempt)

    async def _events(self, conn: Connection, claimed: Claimed) -> dict[tuple[CustomerId, EventId], Event]:
        events = {(event.customer_id, event.id): event for event in claimed.events}
        missing: dict[date, set[tuple[CustomerId, EventId]]] = {}
        for claim in claimed.claims:
            if (actor := self._actors.get(claim.subscription_id)) is not None:
                key = actor.customer_id, claim.event_id
                if key not in events:
                    missing.setdefault(claim.event_day, set()).add(key)
        for day, wanted in missing.items():
            for event in await load_events(conn, day, sorted(wanted)):
                events[event.customer_id, event.id] = event
        return events

    async def wake(self, conn: Connection, ids: Sequence[SubscriptionId]) -> None:
        """Let the actors of these subscriptions look for held deliveries."""
        outdated = [key for key in ids if (actor := self._actors.get(key)) is None or actor.wants_news()]
        if outdated:
            await self._load(conn, outdated)
        for key in ids:
            if (actor := self._actors.get(key)) is not None:
                actor.has_backlog()

    # -- what actors ask (delivery.Desk) ----------------------------------------------------------------------------

    async def reload(self, actor: Delivery) -> bool:
        """Have an actor adopt the present configuration; False where the subscription is deleted."""
        async with self._pool.connection(QUERY_S) as conn:
            return actor.id in await self._load(conn, [actor.id])

    async def claim_held(self, actor: Delivery, limit: int) -> bool:
        """Claim held deliveries into an actor's mailbox. False where nothing is held any more (struck off the list)."""
        fence = self._tools.fence
        async with self._pool.connection(QUERY_S) as conn:
            # Not any more, perhaps: the connection may have taken seconds.
            if not fence.may_claim(actor.shard) or self._tools.recorder.is_stuck:
                return False
            term = fence.term
            with self.ledger.claiming([actor.shard]):
                generation = await queue.roster_generation(conn, actor.id)
                claims = await queue.claim_held(conn, actor.id, limit=limit, lease_s=LEASE_S)
                await self.take(conn, Claimed(claims, [], len(claims)), term=term)
                if len(claims) == limit:
                    return True
                if generation is not None:
                    await queue.strike(conn, actor.id, generation)
                return False

    async def disable(self, actor: Delivery, reason: str) -> None:
        """Disable a subscription that cannot be served, by the version that the actor knows."""
        async with self._pool.connection(QUERY_S) as conn:
            await queue.disable(conn, actor.id, actor.version, reason)
        log.warning("subscription.disabled", subscription_id=actor.id, reason=reason)

    def leave(self, actor: Delivery) -> bool:
        """Strike an actor off. False where a claim is on its way to it or not recorded yet."""
        if self.ledger.has_any_of(actor.id):
            return False
        del self._actors[actor.id]
        return True

    def return_claims(self, claims: Iterable[Claim], *, hold: bool) -> None:
        """Undo claims of which no byte was sent, as soon as the database takes it: their attempts are not counted."""
        self._returns += [(claim, hold) for claim in claims]
        self._return_bell.ring()

    # -- news -------------------------------------------------------------------------------------------------------

    def suspend(self, ids: Iterable[str]) -> None:
        """These subscriptions changed: their actors send nothing more until they have read the new configuration."""
        for key in ids:
            if (actor := self._actors.get(SubscriptionId(key))) is not None:
                actor.suspend()

    def confirm(self, versions: Mapping[SubscriptionId, int], at: float) -> None:
        """A check that began at monotonic time `at` found these versions, of those that actors work with, unchanged."""
        for key, version in versions.items():
            if (actor := self._actors.get(key)) is not None and actor.version == version:
                actor.confirm(at)

    def refresh(self, shards: Collection[int]) -> None:
        """These shards were gained: somebody else may have worked on them since their actors last read anything."""
        self.suspend(actor.id for actor in self._actors.values() if actor.shard in shards)

    def give_back(self, shards: Collection[int]) -> None:
        """Empty the mailboxes of these shards: others may claim at once, and no attempt is counted."""
        self.return_claims(claims_of(self._actors.values(), shards), hold=False)

    def recorded(self, batch: Sequence[AttemptRecord], health: Iterable[Health]) -> None:
        """These results are in the database, which made this of them."""
        counts: dict[SubscriptionId, int] = {}
        for r in batch:
            if r.delivery_id is not None:
                self.ledger.settle(r.delivery_id, r.attempt)
                counts[r.subscription_id] = counts.get(r.subscription_id, 0) + 1
        for key, count in counts.items():
            if (actor := self._actors.get(key)) is not None:
                actor.recorded(count)
        for h in health:
            if h.disabled is not None:
                log.warning("subscription.disabled", subscription_id=h.subscription_id, reason=h.disabled)
            elif h.level is not None:
                failures = h.consecutive_failures
                log.warning("endpoint.failing", subscription_id=h.subscription_id, failures=failures, percent=h.level)
            elif h.recovered:
                log.info("endpoint.recovered", subscription_id=h.subscription_id)
            if (actor := self._actors.get(h.subscription_id)) is not None:
                actor.counted(h)

    # -- in the background ------------------------------------------------------------------------------------------

    async def _give_back(self) -> None:
        while True:
            await self._return_bell.answer()
            while self._returns:
                batch, self._returns = self._returns, []
                if not await self._returned(batch):
                    await trio.sleep(PAUSE_S)

    async def _returned(self, batch: list[tuple[Claim, bool]]) -> bool:
        """Give claims back; False without a database. They stay in memory until then."""
        done = False
        try:
            async with self._pool.connection(QUERY_S) as conn:
                await queue.give_back(conn, batch)
            done = True
        except DatabaseUnavailable as e:
            log.warning("claims.not_given_back", count=len(batch), error=str(e))
        finally:
            if not done:
                self._returns[:0] = batch
        for claim, _ in batch:
            if done:
                self.ledger.settle(claim.delivery_id, claim.attempt)
        return done

    async def _dismiss_idle(self) -> None:
        while True:
            await trio.sleep(IDLE_LOOK_S)
            for actor in self._actors.values():
                actor.consider_leaving()

    async def _extend_leases(self) -> None:
        while True:
            await trio.sleep(EXTEND_S)
            if old := self.ledger.leases(older_than_s=EXTEND_S):
                async with self._pool.connection(QUERY_S) as conn:
                    await queue.extend_leases(conn, old, lease_s=LEASE_S)
