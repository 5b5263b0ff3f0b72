"""One active subscription: its mailbox, its breaker, its window of requests, its keep-alive connections.

Nobody else touches this state. The actor starts when work arrives and leaves after a short linger. While it must not
send (disabled, breaker open) its mailbox goes back to the database, held. It sends with a configuration that was
proven to be the present one less than a second ago, or not at all.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Collection, Iterable
from typing import Final, Literal, Protocol

import trio

from daemon import clock
from daemon.actors.attempt import Attempt, Setup, Withdrawn
from daemon.actors.doorbell import Doorbell
from daemon.actors.fence import FRESH_S
from daemon.actors.pace import Pace
from daemon.actors.tools import Tools
from daemon.errors import DatabaseUnavailable
from daemon.ids import SubscriptionId
from daemon.log import get
from daemon.model import Claim, Job, Outcome, SubscriptionConfig
from daemon.policy import retry
from daemon.sender.endpoint import Endpoint
from daemon.store.record import Health
from daemon.store.shards import shard_of

log = get("delivery")

LINGER_S: Final = 5.0
"""How long an actor without work stays: its connections are worth keeping for the next event. The roster looks, once a
second: a time-out for each wait of each actor would cost more than the wait."""
MAILBOX: Final = 32
"""Claims an actor holds: four times the usual window, so that fetching held ones in batches pays."""
PAUSE_S: Final = 0.2
"""After a query failed, before the next look."""


class Desk(Protocol):
    """What an actor asks of the roster."""

    async def reload(self, actor: Delivery) -> bool:
        """Have the present configuration adopted; False where the subscription is deleted."""
        ...

    async def claim_held(self, actor: Delivery, limit: int) -> bool:
        """Claim held deliveries into the mailbox; False where nothing is held any more."""
        ...

    async def disable(self, actor: Delivery, reason: str) -> None:
        """Disable a subscription that cannot be served."""
        ...

    def return_claims(self, claims: Iterable[Claim], *, hold: bool) -> None:
        """Undo claims of which no byte was sent, as soon as the database takes it."""
        ...

    def leave(self, actor: Delivery) -> bool:
        """Strike the actor off; False, and it has to stay, where a claim is on its way to it or not recorded yet."""
        ...

    def is_full(self) -> bool:
        """Whether there are so many bytes in memory that an actor should fetch no more than it can send."""
        ...


class Delivery:
    """The actor of one subscription. Its methods other than `run` do not wait: the roster calls them."""

    def __init__(self, config: SubscriptionConfig, read_at: float, desk: Desk, tools: Tools) -> None:
        self.id: SubscriptionId = config.id
        self.customer_id = config.customer_id
        self.shard = shard_of(config.customer_id)
        self._desk = desk
        self._tools = tools
        self._bell = Doorbell()
        self._mailbox: deque[Job] = deque()
        self._backlog = False
        self._in_flight = 0
        self._active_at = trio.current_time()
        self._pace = Pace(tools.settings.delivery)
        self._endpoint: Endpoint | None = None
        self._standing: Literal["enabled", "disabled", "deleted"] = "enabled"
        self._suspended_at = -math.inf
        self._read_at = -math.inf
        self._confirmed_at = -math.inf
        self._unrecorded = 0
        self._recorded_at = -math.inf
        self._health_is_owed = False
        self._setup = Setup.of(config, tools.ring, tools.settings.egress)
        self.adopt(config, read_at)

    # -- what the roster tells it -----------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The configuration version that it signs and sends with."""
        return self._setup.config.version

    @property
    def in_flight(self) -> int:
        """Requests going on, or about to."""
        return self._in_flight

    def adopt(self, config: SubscriptionConfig, read_at: float) -> None:
        """Take over configuration and health as the database had them at `read_at` (monotonic) or later."""
        if read_at < self._read_at:
            return
        changed = config.version != self.version
        self._read_at = read_at
        self.confirm(read_at)
        # Results that are not in the database yet are missing in its health, and a disabling that follows from them.
        has_all = not self._unrecorded and read_at >= self._recorded_at
        self._health_is_owed = not has_all
        if has_all:
            self._pace.adopt(config)
        if has_all or changed:
            self._standing = "enabled" if config.enabled else "disabled"
        self._equip(config)
        self._bell.ring()

    def _equip(self, config: SubscriptionConfig) -> None:
        before = self._setup
        if config.version != before.config.version or before.lacks_key:
            self._setup = Setup.of(config, self._tools.ring, self._tools.settings.egress)
        target = self._setup.target
        if self._endpoint is None or target != before.target:
            if self._endpoint is not None:
                self._endpoint.close_idle()
            self._endpoint = self._tools.sender.endpoint(target) if target else None

    def confirm(self, at: float) -> None:
        """The configuration that it works with was the present one at monotonic time `at` or later."""
        self._confirmed_at = max(self._confirmed_at, at)

    def suspend(self) -> None:
        """The configuration may have changed: send nothing more before it has been read again."""
        self._suspended_at = trio.current_time()
        self._bell.ring()

    def offer(self, job: Job) -> None:
        """Put a job into the mailbox."""
        self._mailbox.append(job)
        self._active_at = trio.current_time()
        self._bell.ring()

    def has_backlog(self) -> None:
        """There are held deliveries in the database."""
        self._backlog = True
        self._active_at = trio.current_time()
        self._bell.ring()

    def consider_leaving(self) -> None:
        """Take a turn, and leave after it, if there has been nothing to do for the linger."""
        if self._is_idle() and not self._has_work():
            self._bell.ring()

    @property
    def waiting(self) -> int:
        """Claims in the mailbox."""
        return len(self._mailbox)

    @property
    def window(self) -> int:
        """Requests at a time that its endpoint gets now."""
        return self._pace.window

    def room(self) -> int:
        """Claims it can take. None while held ones wait, which are older."""
        if self._backlog or self._is_shut():
            return 0
        return max(MAILBOX - len(self._mailbox), 0)

    def wants_news(self) -> bool:
        """Whether it waits for something that the database may have by now: the end of a pause, an enabling."""
        return self._standing != "enabled" or not self._pace.is_closed

    def recorded(self, count: int) -> None:
        """So many of its results are in the database."""
        self._unrecorded = max(self._unrecorded - count, 0)
        self._recorded_at = trio.current_time()
        if self._health_is_owed and not self._unrecorded:
            self.suspend()

    def counted(self, health: Health) -> None:
        """What the database made of recorded failures: it alone decides on disabling."""
        if self._standing != "enabled" or health.disabled is not None:
            self.suspend()

    def empty(self) -> list[Claim]:
        """Give up what waits in the mailbox."""
        self._backlog = False
        claims = [job.claim for job in self._mailbox]
        self._mailbox.clear()
        return claims

    # -- its own turn -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until there has been nothing to do for the linger."""
        try:
            async with trio.open_nursery() as workers:
                while True:
                    await self._bell.answer()
                    if await self._try_turn(workers) and self._may_leave():
                        break
        finally:
            self._desk.return_claims(self.empty(), hold=False)
            if self._endpoint is not None:
                self._endpoint.close_idle()

    async def _try_turn(self, workers: trio.Nursery) -> bool:
        try:
            await self._turn(workers)
        except DatabaseUnavailable as e:
            log.warning("delivery.waiting_for_database", subscription_id=self.id, error=str(e))
            await trio.sleep(PAUSE_S)
            self._bell.ring()
            return False
        return True

    def _may_leave(self) -> bool:
        return (self._is_idle() or self._standing == "deleted") and not self._has_work() and self._desk.leave(self)

    def _has_work(self) -> bool:
        return bool(self._mailbox or self._in_flight or (self._backlog and not self._is_shut()))

    def _is_idle(self) -> bool:
        return trio.current_time() - self._active_at >= LINGER_S

    async def _turn(self, workers: trio.Nursery) -> None:
        if self._is_suspended() and not await self._desk.reload(self):
            self._standing = "deleted"
        if self._setup.signer is None and self._standing == "enabled":
            self._standing = "disabled"
            if not self._setup.lacks_key:  # held, and tried again with each reading, until the key is given
                await self._desk.disable(self, "secret_unreadable")
        if self._is_shut():
            self._hold_mailbox()
            return
        if self._backlog and len(self._mailbox) <= MAILBOX // 2 and self._may_start():
            await self._fetch()
        while self._mailbox and self._may_add() and self._may_start():
            self._pace.started()
            self._in_flight += 1
            workers.start_soon(self._work)

    def _may_add(self) -> bool:
        """Whether another request at a time would gain anything."""
        if self._in_flight and self._pace.is_quick and self._tools.lanes.is_crowded():
            return False
        return self._in_flight < self._pace.window

    def _hold_mailbox(self) -> None:
        if self._mailbox:
            self._desk.return_claims(self.empty(), hold=True)
            self._backlog = True

    async def _fetch(self) -> None:
        fence = self._tools.fence
        if not fence.may_claim(self.shard):
            # Whoever owns the shard, be it this daemon a moment later, finds the subscription in the roster's table.
            self._backlog = False
            return
        room = (MAILBOX if self._pace.is_closed else 1) - len(self._mailbox)
        if self._desk.is_full():
            room = min(room, 1 - len(self._mailbox) - self._in_flight)
        if room > 0:
            self._backlog = await self._desk.claim_held(self, room)

    def _is_suspended(self) -> bool:
        return self._read_at < self._suspended_at

    def _is_shut(self) -> bool:
        """Nothing may be sent, and for so long that what is in the mailbox should not stay claimed."""
        return self._standing != "enabled" or self._pace.is_paused()

    def _is_live(self) -> bool:
        return self._standing == "enabled" and not self._is_suspended()

    def _may_start(self) -> bool:
        return self._is_live() and self._pace.may_start()

    # -- sending ----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Send from the mailbox, one after the other, while there is any and the breaker lets traffic flow."""
        try:
            while self._mailbox and self._is_live():
                await self._attempt(self._mailbox.popleft())
                if self._in_flight > self._pace.window or not self._pace.is_closed:
                    break
                if self._has_idle_hands():
                    self._bell.ring()
        finally:
            self._in_flight -= 1
            self._active_at = trio.current_time()
            self._bell.ring()

    def _has_idle_hands(self) -> bool:
        """Whether a turn would start another worker, or fetch."""
        if self._backlog and len(self._mailbox) <= MAILBOX // 2:
            return True
        return bool(self._mailbox) and self._may_add()

    async def _attempt(self, job: Job) -> None:
        sent: tuple[Attempt, Outcome] | None = None
        async with self._tools.lanes.enter(slow=self._pace.is_slow):
            if await self._is_proven(job):
                sent = await self._send(job)
        if sent is None:
            self._call_back(job)
        else:
            await self._settle(job, *sent)

    async def _is_proven(self, job: Job) -> bool:
        """Wait for the proof that a POST may start; False where it may not, and waiting does not help."""
        fence = self._tools.fence
        while self._is_live() and self._is_ours(job):
            if self._has_proof(job):
                return True
            await fence.news()
        return False

    def _is_ours(self, job: Job) -> bool:
        """Whether the claim still stands: not if the session was lost since, even if the shard is ours again."""
        fence = self._tools.fence
        return self.shard in fence.owned and job.term == fence.term

    def _has_proof(self, job: Job) -> bool:
        fresh = trio.current_time() - self._confirmed_at < FRESH_S
        return fresh and self._is_live() and self._is_ours(job) and self._tools.fence.passes(self.shard)

    async def _send(self, job: Job) -> tuple[Attempt, Outcome] | None:
        """One exchange; None if it was called back before its first byte."""
        setup, tracer = self._setup, self._tools.tracer
        span = None if tracer is None else tracer.attempting(job.event)

        def may_start() -> bool:
            return setup is self._setup and self._has_proof(job)

        attempt = Attempt(job.event, job.claim.attempt, setup, may_start, span)
        if self._endpoint is None:
            return attempt, Outcome(None, "blocked", setup.fault, 0)
        try:
            return attempt, await self._endpoint.post(attempt.request, self._tools.lanes.gate)
        except Withdrawn:
            return None

    def _call_back(self, job: Job) -> None:
        """Not sent: back into the mailbox if it is only for a moment, else back to the database."""
        self._pace.withdrawn()
        if self._is_ours(job):
            self._mailbox.appendleft(job)
        else:
            self._desk.return_claims([job.claim], hold=False)

    async def _settle(self, job: Job, attempt: Attempt, outcome: Outcome) -> None:
        claim = job.claim
        judged = retry.verdict(outcome)
        asked_s = retry.retry_after_s(outcome.retry_after, clock.now()) if judged == "retry" else 0.0
        decision = retry.decide(
            judged,
            attempt=claim.attempt,
            steps=claim.steps,
            schedule_s=self._tools.settings.delivery.retry_schedule_s,
            asked_s=asked_s,
            chance=random.random(),  # noqa: S311 - jitter
        )
        self._pace.learn(judged, outcome.duration_ms / 1000, trio.current_time() - attempt.sent_at, asked_s)
        if judged == "gone" or self._pace.is_over:
            self._standing = "disabled"  # the recorder makes it so, or `counted` tells that it is not
        record = attempt.record(outcome, decision, claim=claim, breaker=self._pace.breaker)
        self._tools.observer.attempt(record, decision.wait_s, attempt.host)
        self._unrecorded += 1
        await self._tools.recorder.put(record)


def claims_of(actors: Iterable[Delivery], shards: Collection[int]) -> list[Claim]:
    """Empty the mailboxes that belong to these shards."""
    return [claim for actor in actors if actor.shard in shards for claim in actor.empty()]
