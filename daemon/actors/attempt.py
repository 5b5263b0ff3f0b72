"""One attempt in the making: signs at the last moment, and turns the outcome into the row that is recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec
import trio

from config.settings import Egress
from daemon import clock
from daemon.errors import EndpointUrlInvalid, SealBroken, SealingKeyMissing
from daemon.ids import new_attempt_id
from daemon.log import get
from daemon.model import AttemptRecord, Claim, Event, Outcome, SubscriptionConfig
from daemon.policy import breaker as policy
from daemon.policy import endpoint_url, signing, trace_context
from daemon.policy.retry import Decision
from daemon.sealing import KeyRing
from daemon.sender.request import build
from daemon.store.subscriptions import open_previous_secret, open_secret
from daemon.tracing import Attempting

log = get("attempt")


class Withdrawn(Exception):
    """The attempt may not start any more: disabled, changed, or the shard is not ours."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What sending with one version of a configuration takes.

    `signer` is None where the secret does not open; where only the operator's key for it is not there, `lacks_key`.
    `target` is None where the URL, which was fine when it was stored, is not by the operator's present rules: `fault`
    says why.
    """

    config: SubscriptionConfig
    signer: signing.Signer | None
    lacks_key: bool
    target: endpoint_url.Target | None
    fault: str

    @classmethod
    def of(cls, config: SubscriptionConfig, ring: KeyRing, egress: Egress) -> Setup:
        """Open the secrets and judge the URL."""
        target, fault = None, ""
        try:
            target = endpoint_url.parse(
                config.endpoint_url, allow_localhost=egress.allow_localhost, allow_networks=egress.allow_networks
            )
        except EndpointUrlInvalid as e:
            fault = str(e)
        try:
            signer, lacks_key = _signer(ring, config), False
        except SealingKeyMissing:  # which the ring remembers, to be told once and not for each subscription
            signer, lacks_key = None, True
        return cls(config, signer, lacks_key, target, fault)


def _signer(ring: KeyRing, config: SubscriptionConfig) -> signing.Signer | None:
    try:
        current = signing.SigningKey.of(open_secret(ring, config.id, config.secret_sealed))
    except SealingKeyMissing:
        raise
    except SealBroken as e:
        log.warning("subscription.secret_unreadable", subscription_id=config.id, error=str(e))
        return None
    if config.previous_secret_sealed is None or config.previous_secret_expires_at is None:
        return signing.Signer(current)
    try:
        previous = signing.SigningKey.of(open_previous_secret(ring, config.id, config.previous_secret_sealed))
    except SealingKeyMissing:
        raise
    except SealBroken as e:
        log.warning("subscription.previous_secret_unreadable", subscription_id=config.id, error=str(e))
        return signing.Signer(current)
    return signing.Signer(current, previous, config.previous_secret_expires_at.timestamp())


class Attempt:
    """Attempt number `number` of one event to one endpoint.

    `may_start` is asked again at the very moment of sending, since dialling may have taken seconds. `span` is there
    where traces are on.
    """

    def __init__(
        self, event: Event, number: int, setup: Setup, may_start: Callable[[], bool], span: Attempting | None = None
    ) -> None:
        self.created_at = clock.now()
        self.id = new_attempt_id(self.created_at)
        self.sent_at = math.inf
        """Monotonic time; infinite while no byte was sent."""
        self.host = setup.target.host if setup.target else None
        self._event = event
        self._number = number
        self._setup = setup
        self._may_start = may_start
        self._span = span
        self._signatures: signing.Signatures | None = None
        self._traceparent: str | None = None

    def request(self) -> bytes:
        """The whole request, signed now. Called by the sender just before it writes; raises Withdrawn."""
        event, signer, target = self._event, self._setup.signer, self._setup.target
        if signer is None or target is None or not self._may_start():
            raise Withdrawn
        self.sent_at = trio.current_time()
        signed = self._signatures = signer.sign(event_id=event.id, body=event.body, t=clock.unix_s())
        if self._setup.config.propagate_trace_context:
            self._traceparent = self._own_traceparent()
        fields = signing.headers(
            event_id=event.id,
            event_type=event.type,
            attempt=self._number,
            dealix_signature=signed.dealix,
            webhook_signature=signed.webhook,
            t=signed.t,
            traceparent=self._traceparent,
        )
        return build(target, fields, event.body)

    def _own_traceparent(self) -> str | None:
        """The receiver's parent: this attempt's span, without traces the one that the event came with, if any."""
        context = trace_context.parse(self._event.traceparent) if self._span is None else self._span.context
        return None if context is None else context.header

    def record(
        self, outcome: Outcome, decision: Decision, *, claim: Claim | None, breaker: policy.Breaker | None
    ) -> AttemptRecord:
        """The row of this attempt, with which it ends.

        Without a `claim` it is a test-fire: logged, and no delivery is touched. Without a `breaker` the subscription's
        stays as it is in the database.
        """
        config, signed = self._setup.config, self._signatures
        circuit, cooldown_s, reopen_in_s = (None, 0.0, None) if breaker is None else _circuit(breaker)
        record = AttemptRecord(
            action="log" if claim is None else "finish" if decision.wait_s is None else "retry",
            delivery_id=None if claim is None else claim.delivery_id,
            attempt=self._number,
            wait_s=decision.wait_s or 0.0,
            id=self.id,
            created_at=self.created_at,
            customer_id=config.customer_id,
            subscription_id=config.id,
            event_id=self._event.id,
            event_day=(self._event.created_at.date() if claim is None else claim.event_day).isoformat(),
            event_type=self._event.type,
            outcome=decision.result,
            success=decision.result == "delivered",
            endpoint_url=config.endpoint_url,
            status_code=outcome.status_code,
            error=outcome.error,
            duration_ms=outcome.duration_ms,
            signature=signed.dealix if signed else None,
            webhook_signature=signed.webhook if signed else None,
            response_headers=msgspec.json.encode(outcome.response_headers).decode()
            if outcome.response_headers
            else None,
            response_body=outcome.response_body or None,
            response_truncated=outcome.response_truncated,
            gone=decision.result == "gone",
            circuit=circuit,
            cooldown_s=cooldown_s,
            reopen_in_s=reopen_in_s,
            traceparent=self._traceparent,
        )
        if self._span is not None:
            self._span.end(record, outcome, self._setup.target)
        return record


def _circuit(breaker: policy.Breaker) -> tuple[Literal["closed", "open"], float, float | None]:
    """As the database keeps it: with a probe on its way it is open, and the next probe may go."""
    if isinstance(breaker, policy.Closed):
        return "closed", 0.0, None
    left_s = max(breaker.until - trio.current_time(), 0.0) if isinstance(breaker, policy.Open) else 0.0
    return "open", breaker.cooldown_s, left_s
