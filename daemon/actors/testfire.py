"""A test-fire: one attempt to one endpoint, now, outside the queue. It passes an open breaker and a disabling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from daemon import clock
from daemon.actors.attempt import Attempt, signer_of
from daemon.errors import EndpointUrlInvalid
from daemon.ids import new_event_id
from daemon.model import Event, Outcome, TestFired
from daemon.policy import breaker as policy
from daemon.policy import endpoint_url, retry, signing
from daemon.store import queue, record
from daemon.store import testfire as store

if TYPE_CHECKING:
    from daemon.actors.delivery import Tools
    from daemon.ids import SubscriptionId
    from daemon.model import SubscriptionConfig
    from daemon.store.pool import Pool

QUERY_S: Final = 2.0
DATA: Final = '{"test":true,"message":"This is a test event from Dealix. No action is needed."}'


class TestFire:
    """Called by the API. `fire` returns None where the subscription does not exist; raises SealBroken."""

    __test__ = False

    def __init__(self, pool: Pool, tools: Tools) -> None:
        self._pool = pool
        self._tools = tools

    async def fire(self, subscription_id: SubscriptionId, event_type: str) -> TestFired | None:
        """Make the event, send it once, record the attempt. A success closes an open breaker; nothing is enabled."""
        async with self._pool.connection(QUERY_S) as conn:
            configs = await queue.load_configs(conn, [subscription_id])
            if not configs:
                return None
            config = configs[0]
            signer = signer_of(self._tools.ring, config)
            event = self._event(config, event_type)
            await store.insert_event(conn, event, DATA)
        attempt, outcome = await self._send(config, event, signer)
        judged = retry.verdict(outcome)
        result: retry.Result = "failed" if judged == "retry" else judged
        row = attempt.record(
            outcome,
            retry.Decision(result, None),
            delivery_id=None,
            event_day=event.created_at.date(),
            subscription_id=config.id,
            customer_id=config.customer_id,
            endpoint_url=config.endpoint_url,
            breaker=self._breaker_after(config, delivered=judged == "delivered"),
            now=trio.current_time(),
        )
        async with self._pool.connection(QUERY_S) as conn:
            await record.record(conn, [row], disable_after=self._tools.settings.delivery.disable_after)
            if judged == "delivered":
                await store.tell_owner(conn, config.id)
        self._tools.observer.attempt(row, None, None)
        return TestFired(event.id, row.id, outcome.status_code, row.success, outcome.duration_ms, outcome.error)

    @staticmethod
    def _event(config: SubscriptionConfig, event_type: str) -> Event:
        created_at = clock.now()
        event_id = new_event_id()
        body = signing.envelope(
            event_id=event_id, event_type=event_type, customer_id=config.customer_id, data=DATA, created_at=created_at
        )
        return Event(event_id, event_type, config.customer_id, created_at, body)

    async def _send(self, config: SubscriptionConfig, event: Event, signer: signing.Signer) -> tuple[Attempt, Outcome]:
        egress = self._tools.settings.egress
        try:
            target = endpoint_url.parse(
                config.endpoint_url, allow_localhost=egress.allow_localhost, allow_networks=egress.allow_networks
            )
        except EndpointUrlInvalid as e:
            return Attempt(event, 1, signer, None, lambda: True), Outcome(None, "blocked", str(e), 0)
        endpoint = self._tools.sender.endpoint(target)
        attempt = Attempt(event, 1, signer, target, lambda: True)
        try:
            async with self._tools.lanes.enter(slow=True):
                return attempt, await endpoint.post(attempt.request, self._tools.lanes.gate)
        finally:
            endpoint.close_idle()

    @staticmethod
    def _breaker_after(config: SubscriptionConfig, *, delivered: bool) -> policy.Breaker:
        """A success closes it; a failure leaves the owner's breaker as it stands."""
        if delivered or config.reopen_in_s is None:
            return policy.Closed()
        return policy.Open(config.consecutive_failures, config.cooldown_s, trio.current_time() + config.reopen_in_s)
