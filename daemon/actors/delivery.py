"""One active subscription: its mailbox, its breaker, its window of requests, its keep-alive connections.

Nobody else touches this state. The actor starts when work arrives and leaves after a short linger. While it must not
send (disabled, breaker open, configuration changed and not read yet) its mailbox goes back to the database, held.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from daemon import clock
from daemon.actors.attempt import Attempt, Withdrawn, signer_of
from daemon.actors.doorbell import Doorbell
from daemon.errors import DatabaseUnavailable, EndpointUrlInvalid, SealBroken
from daemon.log import get
from daemon.model import Outcome
from daemon.policy import breaker as policy
from daemon.policy import endpoint_url, retry
from daemon.store.shards import shard_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from config.settings import Settings
    from daemon.actors.fence import Fence
    from daemon.actors.lanes import Lanes
    from daemon.actors.recorder import Recorder
    from daemon.actors.roster import Roster
    from daemon.model import Claim, Job, SubscriptionConfig
    from daemon.observe import Observer
    from daemon.policy.signing import Signer
    from daemon.sealing import KeyRing
    from daemon.sender.endpoint import Endpoint, Sender
    from daemon.store.record import Health

log = get("delivery")

LINGER_S: Final = 5.0
"""How long an actor without work stays: its connections are worth keeping for the next event."""
MAILBOX: Final = 32
"""Claims an actor holds: four times the usual window, so that fetching held ones in batches pays."""
FIRST_WINDOW: Final = 2
"""Requests at a time to an endpoint that has not yet shown that it answers; one more with each quick answer."""
SLOW_S: Final = 1.0
PAUSE_S: Final = 0.5
"""After a query failed, before the next look."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What every actor works with."""

    settings: Settings
    ring: KeyRing
    sender: Sender
    lanes: Lanes
    fence: Fence
    recorder: Recorder
    observer: Observer


class Delivery:
    """The actor of one subscription. Its methods other than `run` do not wait: the roster calls them."""

    def __init__(self, config: SubscriptionConfig, roster: Roster, tools: Tools) -> None:
        self.id = config.id
        self.customer_id = config.customer_id
        self._shard = shard_of(config.customer_id)
        self._roster = roster
        self._tools = tools
        self._bell = Doorbell()
        self._mailbox: deque[Job] = deque()
        self._backlog = False
        self._in_flight = 0
        self._window = FIRST_WINDOW
        self._slow = False
        settings = tools.settings.delivery
        self._limits = policy.Limits(settings.breaker_after, settings.breaker_cooldown_s)
        self._breaker: policy.Breaker = policy.Closed()
        self._endpoint: Endpoint | None = None
        self._target: endpoint_url.Target | None = None
        self._url_fault = ""
        self._signer: Signer | None = None
        self._config = config
        self._suspended = False
        self._disabled = False
        self.adopt(config)

    # -- what the roster tells it -----------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The configuration version that it signs and sends with."""
        return self._config.version

    def adopt(self, config: SubscriptionConfig) -> None:
        """Take over configuration and health as the database has them."""
        self._config = config
        self._suspended = False
        self._disabled = not config.enabled
        if config.reopen_in_s is None:
            self._breaker = policy.Closed(config.consecutive_failures)
        elif not isinstance(self._breaker, policy.HalfOpen):
            until = trio.current_time() + config.reopen_in_s
            self._breaker = policy.Open(config.consecutive_failures, config.cooldown_s, until)
        self._aim(config.endpoint_url)
        try:
            self._signer = signer_of(self._tools.ring, config)
        except SealBroken as e:
            log.error("subscription.secret_unreadable", subscription_id=self.id, error=str(e))
            self._signer = None
        self._bell.ring()

    def _aim(self, url: str) -> None:
        egress = self._tools.settings.egress
        target: endpoint_url.Target | None = None
        try:
            target = endpoint_url.parse(
                url, allow_localhost=egress.allow_localhost, allow_networks=egress.allow_networks
            )
        except EndpointUrlInvalid as e:
            # It was fine when it was stored: the operator's egress rules have changed since.
            self._url_fault = str(e)
        if target != self._target:
            if self._endpoint is not None:
                self._endpoint.close_idle()
            self._target = target
            self._endpoint = self._tools.sender.endpoint(target) if target else None

    def offer(self, job: Job) -> None:
        """Put a job into the mailbox."""
        self._mailbox.append(job)
        self._bell.ring()

    def has_backlog(self) -> None:
        """There are held deliveries in the database."""
        self._backlog = True
        self._bell.ring()

    def suspend(self) -> None:
        """The configuration has changed: send nothing more with this one."""
        self._suspended = True
        self._bell.ring()

    def room(self) -> int:
        """Claims it can take. None while held ones wait, which are older."""
        if self._backlog or self._is_shut():
            return 0
        return max(MAILBOX - len(self._mailbox), 0)

    def wants_news(self) -> bool:
        """Whether it waits for something that the database may have by now: the end of a pause, an enabling."""
        return self._disabled or not isinstance(self._breaker, policy.Closed)

    def counted(self, health: Health) -> None:
        """What the database made of recorded failures: it alone decides on disabling."""
        if self._disabled or health.disabled is not None:
            self.suspend()

    def empty(self, shards: Collection[int]) -> list[Claim]:
        """Give up what waits in the mailbox, if it belongs to these shards."""
        if self._shard not in shards:
            return []
        self._backlog = False
        claims: list[Claim] = []
        while self._mailbox:
            job = self._mailbox.popleft()
            self._roster.done_with(job)
            claims.append(job.claim)
        return claims

    # -- its own turn -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until there has been nothing to do for the linger."""
        try:
            async with trio.open_nursery() as workers:
                while True:
                    rung = await self._bell.wait(LINGER_S)
                    try:
                        await self._turn(workers)
                    except DatabaseUnavailable as e:
                        log.warning("delivery.waiting_for_database", subscription_id=self.id, error=str(e))
                        await trio.sleep(PAUSE_S)
                        self._bell.ring()
                        continue
                    if not rung and not self._mailbox and not self._in_flight and (not self._backlog or self._is_shut()):
                        break
        finally:
            self._roster.leave(self)
            if self._endpoint is not None:
                self._endpoint.close_idle()

    async def _turn(self, workers: trio.Nursery) -> None:
        if self._suspended:
            await self._read_again()
        if self._signer is None and not self._disabled:
            self._disabled = True
            await self._roster.disable(self, "secret_unreadable")
        if self._is_shut():
            await self._hold_mailbox()
            return
        if self._backlog and len(self._mailbox) <= MAILBOX // 2 and self._may_start():
            await self._fetch()
        while self._mailbox and self._in_flight < self._window and self._may_start():
            self._breaker = policy.probe(self._breaker)
            self._in_flight += 1
            workers.start_soon(self._work)

    async def _read_again(self) -> None:
        config = await self._roster.reload(self)
        if config is None:
            self._suspended, self._disabled = False, True
        else:
            self.adopt(config)

    async def _hold_mailbox(self) -> None:
        if self._mailbox:
            claims = self.empty({self._shard})
            await self._roster.return_claims(claims, hold=True)
            self._backlog = True

    async def _fetch(self) -> None:
        closed = isinstance(self._breaker, policy.Closed)
        room = MAILBOX - len(self._mailbox) if closed else 1 - len(self._mailbox)
        if room > 0 and self._tools.fence.passes(self._shard):
            self._backlog = await self._roster.claim_held(self, room)

    def _is_shut(self) -> bool:
        """Nothing may be sent, and for so long that what is in the mailbox should not stay claimed."""
        return self._disabled or (isinstance(self._breaker, policy.Open) and trio.current_time() < self._breaker.until)

    def _may_start(self) -> bool:
        return not self._suspended and not self._disabled and policy.may_start(self._breaker, trio.current_time())

    # -- sending ----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Send from the mailbox, one after the other, while there is any and the breaker lets traffic flow."""
        try:
            while self._mailbox and not self._suspended and not self._disabled:
                await self._attempt(self._mailbox.popleft())
                if self._in_flight > self._window or not isinstance(self._breaker, policy.Closed):
                    break
        finally:
            self._in_flight -= 1
            self._bell.ring()

    async def _attempt(self, job: Job) -> None:
        sent: tuple[Attempt, Outcome] | None = None
        async with self._tools.lanes.enter(slow=self._slow):
            if await self._tools.fence.wait(self._shard):
                sent = await self._send(job)
        if sent is None:
            await self._call_back(job)
        else:
            await self._settle(job, *sent)

    async def _send(self, job: Job) -> tuple[Attempt, Outcome] | None:
        """One exchange; None if it was called back before its first byte."""
        if self._suspended or self._disabled or self._signer is None:
            return None
        version = self.version

        def may_start() -> bool:
            return self.version == version and not self._suspended and self._tools.fence.passes(self._shard)

        if self._endpoint is None or self._target is None:
            outcome = Outcome(None, "blocked", self._url_fault, 0)
            return Attempt(job.event, job.claim.attempt, self._signer, None, may_start), outcome
        attempt = Attempt(job.event, job.claim.attempt, self._signer, self._target, may_start)
        try:
            return attempt, await self._endpoint.post(attempt.request, self._tools.lanes.gate)
        except Withdrawn:
            return None

    async def _call_back(self, job: Job) -> None:
        """Not sent: back into the mailbox if it is only for a moment, else back to the database."""
        if isinstance(self._breaker, policy.HalfOpen):
            self._breaker = policy.Open(self._breaker.failures, self._breaker.cooldown_s, trio.current_time())
        if self._shard in self._tools.fence.owned:
            self._mailbox.appendleft(job)
        else:
            self._roster.done_with(job)
            await self._roster.return_claims([job.claim], hold=False)

    async def _settle(self, job: Job, attempt: Attempt, outcome: Outcome) -> None:
        claim, settings = job.claim, self._tools.settings.delivery
        now = trio.current_time()
        judged = retry.verdict(outcome)
        asked_s = retry.retry_after_s(outcome.retry_after, clock.now()) if judged == "retry" else 0.0
        decision = retry.decide(
            judged,
            attempt=claim.attempt,
            steps=claim.steps,
            schedule_s=settings.retry_schedule_s,
            asked_s=asked_s,
            chance=random.random(),
        )
        self._learn(judged, outcome.duration_ms / 1000, now, asked_s)
        record = attempt.record(
            outcome,
            decision,
            delivery_id=claim.delivery_id,
            event_day=claim.event_day,
            subscription_id=self.id,
            customer_id=self.customer_id,
            endpoint_url=self._config.endpoint_url,
            breaker=self._breaker,
            now=now,
        )
        self._tools.observer.attempt(record, decision.wait_s, self._target.host if self._target else None)
        self._roster.done_with(job)
        await self._tools.recorder.put(record)

    def _learn(self, judged: retry.Verdict, duration_s: float, now: float, asked_s: float) -> None:
        self._slow = duration_s > SLOW_S
        if judged == "delivered":
            self._breaker = policy.succeeded()
            self._window = 1 if self._slow else min(self._window + 1, self._tools.settings.delivery.per_subscription)
            return
        self._window = 1
        self._breaker = policy.failed(self._breaker, self._limits, now=now, asked_s=asked_s, chance=random.random())
        if judged == "gone" or self._breaker.failures >= self._tools.settings.delivery.disable_after:
            self._disabled = True  # the recorder makes it so, or `counted` tells that the database counts otherwise
