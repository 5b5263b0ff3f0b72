"""The circuit breaker of one subscription. Pure: time is a monotonic float in seconds, chance a float in [0, 1).

Closed --failures reach `after`--> Open --cool-down over--> HalfOpen --probe delivered--> Closed
                                    ^                          |
                                    +----- probe failed -------+   (the cool-down doubles, up to 15 min)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

MAX_COOLDOWN_S: Final = 900.0
JITTER: Final = 0.1


@dataclass(frozen=True, slots=True)
class Closed:
    """Traffic flows. `failures` in a row so far."""

    failures: int = 0


@dataclass(frozen=True, slots=True)
class Open:
    """No traffic until `until`. `cooldown_s` is the present cool-down without jitter."""

    failures: int
    cooldown_s: float
    until: float


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """One probe is on its way; nothing else may start."""

    failures: int
    cooldown_s: float


Breaker = Closed | Open | HalfOpen


@dataclass(frozen=True, slots=True)
class Limits:
    """`after` failures in a row open the breaker; `cooldown_s` is its first cool-down."""

    after: int
    cooldown_s: float


_CLOSED: Final = Closed()


def may_start(breaker: Breaker, now: float) -> bool:
    """Whether a request may start now. From Open, only as the probe: the caller then calls `probe`."""
    return isinstance(breaker, Closed) or (isinstance(breaker, Open) and now >= breaker.until)


def probe(breaker: Breaker) -> Breaker:
    """The state once a request has started: an Open breaker becomes HalfOpen."""
    return HalfOpen(breaker.failures, breaker.cooldown_s) if isinstance(breaker, Open) else breaker


def succeeded() -> Breaker:
    """A delivered attempt closes the breaker from any state."""
    return _CLOSED


def failed(breaker: Breaker, limits: Limits, *, now: float, asked_s: float, chance: float) -> Breaker:
    """The state after an attempt that did not deliver. `asked_s` is Retry-After: the cool-down is no shorter.

    A failure while Open belongs to a request that began before it opened: it counts, and changes nothing else.
    """
    failures = breaker.failures + 1
    if isinstance(breaker, Open):
        return replace(breaker, failures=failures)
    if isinstance(breaker, Closed):
        if failures < limits.after:
            return Closed(failures)
        cooldown_s = limits.cooldown_s
    else:
        cooldown_s = min(breaker.cooldown_s * 2, max(MAX_COOLDOWN_S, limits.cooldown_s))
    wait_s = max(cooldown_s * (1 + JITTER * chance), asked_s)
    return Open(failures, cooldown_s, now + wait_s)
