"""Which actors live, and who gets which claim. Knows every claim in memory from its birth to its record.

Actors are started when work for their subscription arrives and leave when it is done: 100,000 subscriptions must not
cost 100,000 tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import trio

from daemon.actors.delivery import MAILBOX, Delivery
from daemon.actors.supervise import guard
from daemon.errors import DatabaseUnavailable
from daemon.log import get
from daemon.model import Job
from daemon.store import queue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

    from daemon.actors.delivery import Tools
    from daemon.ids import DeliveryId, SubscriptionId
    from daemon.model import Claim, Event, SubscriptionConfig
    from daemon.store.connection import Connection
    from daemon.store.pool import Pool
    from daemon.store.record import Health

log = get("roster")
Arg = TypeVar("Arg")

LEASE_S: Final = 60.0
"""How long a claim stays ours without word from us. Only a frozen or vanished daemon lets it end."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""Event bytes in memory; over it everything is held, and actors fetch only what they can send."""
EXTEND_S: Final = 15.0
QUERY_S: Final = 5.0


class Roster:
    """The registry of one daemon. Its methods run in whoever calls; no await stands between reading and writing."""

    def __init__(self, pool: Pool, tools: Tools) -> None:
        self._pool = pool
        self._tools = tools
        self._actors: dict[SubscriptionId, Delivery] = {}
        self._claims: dict[DeliveryId, tuple[Claim, float]] = {}
        self._working = [0] * 64
        self._bytes = 0
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """House the actors; extend the leases of what stays in memory long. Ends only by cancellation."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                await trio.sleep(EXTEND_S)
                await self._extend_leases()

    # -- room -------------------------------------------------------------------------------------------------------

    def rooms(self) -> dict[SubscriptionId, int]:
        """How many more claims each living actor has room for, where that is less than `default_room`."""
        default = self.default_room()
        return {key: room for key, actor in self._actors.items() if (room := actor.room()) < default}

    def default_room(self) -> int:
        """How many claims a subscription without an actor has room for."""
        return MAILBOX if self._bytes < MAX_BYTES else 0

    def versions(self) -> dict[SubscriptionId, int]:
        """The configuration version that each living actor works with."""
        return {key: actor.version for key, actor in self._actors.items()}

    def ids_held(self) -> list[DeliveryId]:
        """Every claim in memory: in a mailbox, in flight, or not recorded yet."""
        return list(self._claims)

    def is_working(self, shard: int) -> bool:
        """Whether any claim of the shard is still in memory."""
        return self._working[shard] > 0

    def counts(self) -> tuple[int, int]:
        """Living actors, and claims in memory."""
        return len(self._actors), len(self._claims)

    # -- work comes -------------------------------------------------------------------------------------------------

    async def take(self, conn: Connection, claims: Sequence[Claim], held: Iterable[SubscriptionId]) -> None:
        """Hand claims to their actors, starting those that are missing; tell actors that something is held for them.

        Loads the events, and the configuration where it is not known or older than the claim saw it.
        """
        now = trio.current_time()
        for claim in claims:
            self._claims[claim.delivery_id] = (claim, now)
            self._working[claim.shard] += 1
        handed_over: set[DeliveryId] = set()
        try:
            await self._hand_over(conn, claims, handed_over)
        except BaseException:
            # Nobody will send these: give them back as soon as the database listens again.
            left = [c for c in claims if c.delivery_id not in handed_over]
            self._start(self.return_claims, left)
            raise
        for subscription_id in held:
            if (actor := self._actors.get(subscription_id)) is not None:
                actor.has_backlog()

    async def _hand_over(self, conn: Connection, claims: Sequence[Claim], done: set[DeliveryId]) -> None:
        unknown = {
            c.subscription_id
            for c in claims
            if (actor := self._actors.get(c.subscription_id)) is None or actor.version < c.version
        }
        if unknown:
            await self._know(conn, unknown)
        if claims:
            events = await self._events(conn, claims)
            expired = [c for c in claims if not self._deliver(c, events.get((c.subscription_id, c.event_id)))]
            done.update(c.delivery_id for c in claims)
            if expired:
                await queue.expire(conn, expired)
                self.settle(c.delivery_id for c in expired)

    def _deliver(self, claim: Claim, event: Event | None) -> bool:
        """False where the event is gone, which retention removes after its deliveries have ended."""
        actor = self._actors.get(claim.subscription_id)
        if actor is None:
            # Deleted since it was claimed: the duty is gone with it, its row goes when the lease ends.
            self.settle([claim.delivery_id])
        elif event is None:
            return False
        else:
            self._bytes += len(event.body)
            actor.offer(Job(claim, event))
        return True

    async def _know(self, conn: Connection, ids: Iterable[SubscriptionId]) -> None:
        for config in await queue.load_configs(conn, ids):
            self._admit(config)

    def _admit(self, config: SubscriptionConfig) -> Delivery:
        actor = self._actors.get(config.id)
        if actor is not None:
            actor.adopt(config)
            return actor
        actor = self._actors[config.id] = Delivery(config, self, self._tools)
        self._start(self._house, actor)
        return actor

    def _start(self, run: Callable[[Arg], Awaitable[None]], arg: Arg) -> None:
        if self._nursery is None:
            raise RuntimeError("the roster was given work before it ran")
        self._nursery.start_soon(run, arg)

    async def _house(self, actor: Delivery) -> None:
        if not await guard("delivery", actor.run, subscription_id=actor.id):
            # A bug. Whatever it had in hand comes back when the leases end.
            self.settle([key for key, (claim, _) in self._claims.items() if claim.subscription_id == actor.id])

    async def _events(
        self, conn: Connection, claims: Sequence[Claim]
    ) -> dict[tuple[SubscriptionId, str], Event]:
        by_day: dict[object, dict[tuple[str, str], list[Claim]]] = {}
        for claim in claims:
            customer_id = self._actors[claim.subscription_id].customer_id if claim.subscription_id in self._actors else None
            if customer_id is not None:
                by_day.setdefault(claim.event_day, {}).setdefault((customer_id, claim.event_id), []).append(claim)
        found: dict[tuple[SubscriptionId, str], Event] = {}
        for day, wanted in by_day.items():
            for event in await queue.load_events(conn, day, list(wanted)):
                for claim in wanted[event.customer_id, event.id]:
                    found[claim.subscription_id, event.id] = event
        return found

    async def wake(self, conn: Connection, ids: Sequence[SubscriptionId]) -> None:
        """Let the actors of these subscriptions look for held deliveries."""
        outdated = [key for key in ids if (actor := self._actors.get(key)) is None or actor.wants_news()]
        if outdated:
            for config in await queue.load_configs(conn, outdated):
                self._admit(config)
        for key in ids:
            if (actor := self._actors.get(key)) is not None:
                actor.has_backlog()

    # -- news and ends ----------------------------------------------------------------------------------------------

    def suspend(self, ids: Iterable[str]) -> None:
        """These subscriptions changed: their actors send nothing more until they have read the new configuration."""
        for key in ids:
            if (actor := self._actors.get(key)) is not None:  # pyright: ignore[reportArgumentType]
                actor.suspend()

    async def reload(self, actor: Delivery) -> SubscriptionConfig | None:
        """Read an actor's configuration again; None where the subscription is deleted."""
        async with self._pool.connection(QUERY_S) as conn:
            configs = await queue.load_configs(conn, [actor.id])
        return configs[0] if configs else None

    async def claim_held(self, actor: Delivery, limit: int) -> bool:
        """Claim held deliveries into an actor's mailbox. False where nothing is held any more (struck off the list)."""
        async with self._pool.connection(QUERY_S) as conn:
            generation = await queue.roster_generation(conn, actor.id)
            claims = await queue.claim_held(conn, actor.id, limit=limit, lease_s=LEASE_S)
            if claims:
                await self.take(conn, claims, [])
            if len(claims) < limit:
                if generation is not None:
                    await queue.strike(conn, actor.id, generation)
                return False
            return True

    async def disable(self, actor: Delivery, reason: str) -> None:
        """Disable a subscription that cannot be served, by the version that the actor knows."""
        async with self._pool.connection(QUERY_S) as conn:
            await queue.disable(conn, actor.id, actor.version, reason)
        log.warning("subscription.disabled", subscription_id=actor.id, reason=reason)

    def leave(self, actor: Delivery) -> None:
        """An actor ends. A new one is started when there is work again."""
        if self._actors.get(actor.id) is actor:
            del self._actors[actor.id]

    def done_with(self, job: Job) -> None:
        """The event's bytes are not needed any more."""
        self._bytes -= len(job.event.body)

    def settle(self, ids: Iterable[DeliveryId]) -> None:
        """These claims are recorded or given back: out of memory."""
        for delivery_id in ids:
            entry = self._claims.pop(delivery_id, None)
            if entry is not None:
                self._working[entry[0].shard] -= 1

    def heard(self, health: Iterable[Health]) -> None:
        """What the database made of recorded results."""
        for h in health:
            if h.disabled is not None:
                log.warning("subscription.disabled", subscription_id=h.subscription_id, reason=h.disabled)
            if (actor := self._actors.get(h.subscription_id)) is not None:
                actor.counted(h)

    async def give_back(self, shards: Collection[int]) -> None:
        """Empty the mailboxes of these shards: others may claim at once, and no attempt is counted."""
        claims: list[Claim] = []
        for actor in list(self._actors.values()):
            claims += actor.empty(shards)
        await self.return_claims(claims, hold=False)

    async def return_claims(self, claims: Sequence[Claim], hold: bool = False) -> None:
        """Undo claims. Without a database they come back by their lease, or as soon as somebody gains the shard."""
        if not claims:
            return
        try:
            async with self._pool.connection(QUERY_S) as conn:
                await queue.give_back(conn, claims, hold=hold)
        except DatabaseUnavailable as e:
            log.warning("claims.kept_by_lease", count=len(claims), error=str(e))
        finally:
            self.settle(c.delivery_id for c in claims)

    async def _extend_leases(self) -> None:
        before = trio.current_time() - EXTEND_S
        old = [key for key, (_, since) in self._claims.items() if since <= before]
        if not old:
            return
        try:
            async with self._pool.connection(QUERY_S) as conn:
                await queue.extend_leases(conn, old, lease_s=LEASE_S)
        except DatabaseUnavailable as e:
            log.warning("leases.not_extended", count=len(old), error=str(e))
