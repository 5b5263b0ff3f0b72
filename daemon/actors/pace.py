"""How fast one endpoint is served: its breaker, its window of requests at a time, whether it is known to be slow."""

from __future__ import annotations

import random
from typing import Final

import trio

from config.settings import Delivery as Settings
from daemon.model import SubscriptionConfig
from daemon.policy import breaker as policy
from daemon.policy.retry import Verdict

FIRST_WINDOW: Final = 2
"""Requests at a time to an endpoint that has not yet shown that it answers; one more with each 2xx, quick or slow."""
SLOW_S: Final = 1.0
QUICK_S: Final = 0.02
"""An answer within this, from the last byte of the request on, came by return of post."""


class Pace:
    """Belongs to one actor, which tells it of every request and every result."""

    def __init__(self, settings: Settings) -> None:
        self.breaker: policy.Breaker = policy.Closed()
        self.window = FIRST_WINDOW
        self.is_slow = False
        self.is_quick = False
        """Where the CPU is what everybody waits for, one request at a time is as fast as several."""
        self._settings = settings
        self._limits = policy.Limits(settings.breaker_after, settings.breaker_cooldown_s)

    @property
    def is_closed(self) -> bool:
        """Whether traffic flows."""
        return isinstance(self.breaker, policy.Closed)

    @property
    def is_over(self) -> bool:
        """Whether there were so many failures in a row that the subscription is to be disabled."""
        return self.breaker.failures >= self._settings.disable_after

    def adopt(self, config: SubscriptionConfig) -> None:
        """Take over what the database remembers. A probe on its way stays one."""
        if config.reopen_in_s is None:
            self.breaker = policy.Closed(config.consecutive_failures)
        elif not isinstance(self.breaker, policy.HalfOpen):
            until = trio.current_time() + config.reopen_in_s
            self.breaker = policy.Open(config.consecutive_failures, config.cooldown_s, until)
        if self.breaker.failures:
            self.window = 1

    def is_paused(self) -> bool:
        """Whether the cool-down is not over yet."""
        return isinstance(self.breaker, policy.Open) and trio.current_time() < self.breaker.until

    def may_start(self) -> bool:
        """Whether a request may start now."""
        return policy.may_start(self.breaker, trio.current_time())

    def started(self) -> None:
        """A request is about to start."""
        self.breaker = policy.probe(self.breaker)

    def withdrawn(self) -> None:
        """A request was called back: if it was the probe, another one may go."""
        if isinstance(self.breaker, policy.HalfOpen):
            self.breaker = policy.Open(self.breaker.failures, self.breaker.cooldown_s, trio.current_time())

    def learn(self, judged: Verdict, duration_s: float, answered_in_s: float, asked_s: float) -> None:
        """A request ended, `duration_s` after it was begun and `answered_in_s` after it was sent."""
        self.is_slow = duration_s > SLOW_S
        self.is_quick = answered_in_s < QUICK_S
        if judged == "delivered":
            self.breaker = policy.succeeded()
            self.window = min(self.window + 1, self._settings.per_subscription)
            return
        self.window = 1
        chance = random.random()  # noqa: S311 - jitter
        self.breaker = policy.failed(
            self.breaker, self._limits, now=trio.current_time(), asked_s=asked_s, chance=chance
        )
