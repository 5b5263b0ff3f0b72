"""One attempt in the making: signs at the last moment, and turns the outcome into the row that is recorded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from daemon import clock
from daemon.ids import new_attempt_id
from daemon.model import AttemptRecord
from daemon.policy import breaker as policy
from daemon.policy import signing
from daemon.sender.request import build
from daemon.store.subscriptions import open_previous_secret, open_secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date

    from daemon.ids import CustomerId, DeliveryId, SubscriptionId
    from daemon.model import Event, Outcome, SubscriptionConfig
    from daemon.policy.endpoint_url import Target
    from daemon.policy.retry import Decision
    from daemon.sealing import KeyRing


def signer_of(ring: KeyRing, config: SubscriptionConfig) -> signing.Signer:
    """Open a subscription's secrets. Raises SealBroken."""

    current = signing.SigningKey.of(open_secret(ring, config.id, config.secret_sealed))
    if config.previous_secret_sealed is None or config.previous_secret_expires_at is None:
        return signing.Signer(current)
    previous = signing.SigningKey.of(open_previous_secret(ring, config.id, config.previous_secret_sealed))
    return signing.Signer(current, previous, config.previous_secret_expires_at.timestamp())


class Withdrawn(Exception):  # noqa: N818 - not an error: the request was called back before its first byte
    """The attempt may not start any more: disabled, changed, or the shard is not ours."""


class Attempt:
    """Attempt number `number` of one event to one endpoint.

    `may_start` is asked again at the very moment of sending, since dialling may have taken seconds.
    """

    def __init__(
        self, event: Event, number: int, signer: signing.Signer, target: Target | None, may_start: Callable[[], bool]
    ) -> None:
        self.created_at = clock.now()
        self.id = new_attempt_id(self.created_at)
        self._event = event
        self._number = number
        self._target = target
        self._signer = signer
        self._may_start = may_start
        self._signatures: signing.Signatures | None = None

    def request(self) -> bytes:
        """The whole request, signed now. Called by the sender just before it writes; raises Withdrawn."""
        if self._target is None or not self._may_start():
            raise Withdrawn
        event = self._event
        signed = self._signatures = self._signer.sign(event_id=event.id, body=event.body, t=clock.unix_s())
        fields = signing.headers(
            event_id=event.id,
            event_type=event.type,
            attempt=self._number,
            dealix_signature=signed.dealix,
            webhook_signature=signed.webhook,
            t=signed.t,
        )
        return build(self._target, fields, event.body)

    def record(
        self,
        outcome: Outcome,
        decision: Decision,
        *,
        delivery_id: DeliveryId | None,
        event_day: date,
        subscription_id: SubscriptionId,
        customer_id: CustomerId,
        endpoint_url: str,
        breaker: policy.Breaker,
        now: float,
    ) -> AttemptRecord:
        """The row of this attempt. Without `delivery_id` it is a test-fire: logged, and no delivery is touched."""
        is_open = not isinstance(breaker, policy.Closed)
        action = "log" if delivery_id is None else "finish" if decision.wait_s is None else "retry"
        return AttemptRecord(
            action=action,
            delivery_id=delivery_id,
            attempt=self._number,
            wait_s=decision.wait_s or 0.0,
            id=self.id,
            created_at=self.created_at,
            customer_id=customer_id,
            subscription_id=subscription_id,
            event_id=self._event.id,
            event_day=event_day.isoformat(),
            event_type=self._event.type,
            outcome=decision.result,
            success=decision.result == "delivered",
            endpoint_url=endpoint_url,
            status_code=outcome.status_code,
            error=outcome.error,
            duration_ms=outcome.duration_ms,
            signature=self._signatures.dealix if self._signatures else None,
            webhook_signature=self._signatures.webhook if self._signatures else None,
            response_headers=json.dumps(outcome.response_headers) if outcome.response_headers else None,
            response_body=outcome.response_body or None,
            response_truncated=outcome.response_truncated,
            gone=decision.result == "gone",
            circuit="open" if is_open else "closed",
            cooldown_s=0.0 if isinstance(breaker, policy.Closed) else breaker.cooldown_s,
            reopen_in_s=max(breaker.until - now, 0.0) if isinstance(breaker, policy.Open) else (0.0 if is_open else None),
        )
