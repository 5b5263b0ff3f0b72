"""A test-fire: one attempt to one endpoint, now, outside the queue. It passes an open breaker and a disabling."""

from __future__ import annotations

from typing import Final

from daemon import clock
from daemon.actors.attempt import Attempt, Setup
from daemon.actors.tools import Tools
from daemon.errors import SealBroken
from daemon.ids import SubscriptionId, new_event_id
from daemon.model import Event, Outcome, SubscriptionConfig, TestFired
from daemon.policy import retry, signing
from daemon.policy.breaker import Closed
from daemon.store import event_types, queue, record
from daemon.store import testfire as store
from daemon.store.pool import Pool

QUERY_S: Final = 2.0
PLAIN: Final = '{"test":true,"message":"This is a test event from Dealix. No action is needed."}'
"""The payload where the type has no example."""


def sample(example: str | None) -> str:
    """A payload for a test: the type's example, marked, so that nobody takes it for something that happened."""
    if example is None:
        return PLAIN
    body = example.strip()[1:].lstrip()
    return '{"test": true' + ("" if body.startswith("}") else ", ") + body


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
            setup = Setup.of(configs[0], self._tools.ring, self._tools.settings.egress)
            if setup.signer is None:
                raise SealBroken("the subscription's secret does not open")
            known = await event_types.get(conn, event_type)
            data = sample(known.example if known else None)
            event = self._event(setup.config, event_type, data)
            await store.insert_event(conn, event, data)
        attempt, outcome = await self._send(setup, event)
        judged = retry.verdict(outcome)
        result: retry.Result = "failed" if judged == "retry" else judged
        # A success closes the breaker; a failure leaves it to the owner, which may have opened it meanwhile.
        breaker = Closed() if judged == "delivered" else None
        row = attempt.record(outcome, retry.Decision(result, None), claim=None, breaker=breaker)
        async with self._pool.connection(QUERY_S) as conn:
            await record.record(conn, [row], disable_after=self._tools.settings.delivery.disable_after)
            if judged == "delivered":
                await store.tell_owner(conn, subscription_id)
        self._tools.observer.attempt(row, None, attempt.host)
        return TestFired(event.id, row.id, outcome.status_code, row.success, outcome.duration_ms, outcome.error)

    @staticmethod
    def _event(config: SubscriptionConfig, event_type: str, data: str) -> Event:
        created_at = clock.now()
        event_id = new_event_id()
        body = signing.envelope(
            event_id=event_id, event_type=event_type, customer_id=config.customer_id, data=data, created_at=created_at
        )
        return Event(event_id, event_type, config.customer_id, created_at, body)

    async def _send(self, setup: Setup, event: Event) -> tuple[Attempt, Outcome]:
        tracer = self._tools.tracer
        attempt = Attempt(event, 1, setup, lambda: True, None if tracer is None else tracer.attempting(event))
        if setup.target is None:
            return attempt, Outcome(None, "blocked", setup.fault, 0)
        endpoint = self._tools.sender.endpoint(setup.target)
        try:
            async with self._tools.lanes.enter(slow=True):
                return attempt, await endpoint.post(attempt.request, self._tools.lanes.gate)
        finally:
            endpoint.close_idle()
