"""The circuit breaker against a model that knows only the sequence of results."""

from __future__ import annotations

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon.policy.breaker import (
    MAX_COOLDOWN_S,
    Breaker,
    Closed,
    HalfOpen,
    Limits,
    Open,
    failed,
    may_start,
    probe,
    succeeded,
)

LIMITS = Limits(after=5, cooldown_s=30.0)
chances = st.floats(0, 1, exclude_max=True)


class BreakerMachine(RuleBasedStateMachine):
    """The model: failures in a row, how often a pause has begun in this row, and until when the pause lasts.

    Requests are counted, so that late results of requests from before a pause come in too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.limits = LIMITS
        self.breaker: Breaker = Closed()
        self.now = 1000.0
        self.failures = 0
        self.pauses = 0
        self.paused_until = -math.inf
        self.probing = False
        self.flying = 0

    @initialize(after=st.integers(1, 8), cooldown_s=st.floats(0.1, 900))
    def limit(self, after: int, cooldown_s: float) -> None:
        self.limits = Limits(after, cooldown_s)

    @rule(seconds=st.floats(0, 2000))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_request_starts_if_it_may(self) -> None:
        allowed = not self.probing and (self.pauses == 0 or self.now >= self.paused_until)
        assert may_start(self.breaker, self.now) == allowed
        if allowed:
            self.breaker = probe(self.breaker)
            self.flying += 1
            self.probing = self.pauses > 0

    @precondition(lambda self: self.flying > 0)
    @rule()
    def a_result_is_good(self) -> None:
        self.flying -= 1
        self.breaker = succeeded()
        self.failures = self.pauses = 0
        self.probing = False

    @precondition(lambda self: self.flying > 0)
    @rule(chance=chances, asked_s=st.just(0.0) | st.floats(0, 86_400))
    def a_result_is_bad(self, chance: float, asked_s: float) -> None:
        self.flying -= 1
        self.breaker = failed(self.breaker, self.limits, now=self.now, asked_s=asked_s, chance=chance)
        self.failures += 1
        begins = self.failures >= self.limits.after if self.pauses == 0 else self.probing
        if begins:
            cooldown_s = min(self.limits.cooldown_s * 2**self.pauses, MAX_COOLDOWN_S)
            self.paused_until = self.now + max(cooldown_s * (1 + 0.1 * chance), asked_s)
            self.pauses += 1
            self.probing = False

    @invariant()
    def it_is_where_the_model_is(self) -> None:
        assert self.breaker.failures == self.failures
        if self.pauses == 0:
            assert isinstance(self.breaker, Closed)
        elif self.probing:
            assert isinstance(self.breaker, HalfOpen)
        else:
            assert isinstance(self.breaker, Open)
            assert self.breaker.until == pytest.approx(self.paused_until)
            assert self.breaker.cooldown_s == pytest.approx(
                min(self.limits.cooldown_s * 2 ** (self.pauses - 1), MAX_COOLDOWN_S)
            )


TestBreaker = BreakerMachine.TestCase


def test_a_failing_probe_doubles_the_cool_down_up_to_a_quarter_of_an_hour() -> None:
    breaker: Breaker = Closed(4)
    now = 0.0
    cooldowns: list[float] = []
    for _ in range(8):
        breaker = failed(breaker, LIMITS, now=now, asked_s=0.0, chance=0.0)
        assert isinstance(breaker, Open)
        cooldowns.append(breaker.until - now)
        now = breaker.until
        breaker = probe(breaker)
    assert cooldowns == [30, 60, 120, 240, 480, 900, 900, 900]


def test_retry_after_makes_a_cool_down_longer_and_is_not_doubled() -> None:
    first = failed(Closed(4), LIMITS, now=0.0, asked_s=3600.0, chance=0.0)
    assert first == Open(5, 30.0, 3600.0)
    second = failed(probe(first), LIMITS, now=3600.0, asked_s=0.0, chance=0.0)
    assert second == Open(6, 60.0, 3660.0)


def test_a_late_failure_of_a_request_from_before_the_opening_only_counts() -> None:
    opened = Open(5, 30.0, 130.0)
    assert failed(opened, LIMITS, now=101.0, asked_s=500.0, chance=0.9) == Open(6, 30.0, 130.0)


def test_only_one_probe_goes() -> None:
    opened = Open(5, 30.0, 130.0)
    assert not may_start(opened, 129.9)
    assert may_start(opened, 130.0)
    assert not may_start(probe(opened), 1e9)


def test_a_started_request_leaves_a_closed_breaker_as_it_is() -> None:
    assert probe(Closed(3)) == Closed(3)
