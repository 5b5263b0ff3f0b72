"""The judgement: what the application committed against what the receiver saw and what the log says.

It reads the ledger (the application's own table, written in the emitting transactions), the receiver's book, and the
product's tables only where they are what is judged.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

from tests.e2e.scene import Scene
from tests.e2e.traffic import Receipt
from tests.support.daemon_process import until

Duty = tuple[str, str]
Claim = tuple[str, str, int]
LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the numbers came to. `logged` is the delivery log: outcome by event, endpoint's name and attempt."""

    duties: int
    receipts: int
    repeated: frozenset[Claim]
    """Attempts after which the same duty was received once more: each is one duplicate."""
    logged: dict[Claim, str]

    @property
    def duplicates(self) -> int:
        return self.receipts - self.duties

    @property
    def interrupted(self) -> set[Claim]:
        return {claim for claim, outcome in self.logged.items() if outcome == "interrupted"}


def expected(scene: Scene) -> set[Duty]:
    """Every committed event for each subscription that wants it. All of them are enabled all the time."""
    duties: set[Duty] = set()
    for event_id, customer_id, event_type, matched in scene.rows("SELECT * FROM ledger"):
        wanted = [
            (event_id, s.name)
            for s in scene.subscribed
            if s.customer_id == customer_id and (not s.events or event_type in s.events)
        ]
        assert len(wanted) == matched, f"{event_id} matched {matched} subscriptions, not {len(wanted)}"
        duties.update(wanted)
    return duties


def wait_until_arrived(scene: Scene, *, within_s: float = 15.0) -> None:
    """Wait until each duty of this moment was answered with 2xx."""
    duties = expected(scene)
    until(lambda: duties <= scene.receiver.answered(), within_s=within_s, what="every event at every endpoint")


def wait_until_done(scene: Scene, *, within_s: float) -> None:
    """Wait until each duty was answered with 2xx and the product has nothing left to do."""
    wait_until_arrived(scene, within_s=within_s)
    until(
        lambda: scene.rows("SELECT count(*) FROM dealix.deliveries UNION SELECT count(*) FROM dealix.outbox") == [(0,)],
        within_s=within_s,
        what="everything recorded",
    )


def judge(scene: Scene, *, within_s: float = 15.0) -> Verdict:
    """Wait for the end, then check what holds whatever was killed: nothing lost, foreign, changed or unlogged."""
    wait_until_done(scene, within_s=within_s)
    duties = expected(scene)
    by_duty: defaultdict[Duty, list[Receipt]] = defaultdict(list)
    receipts = scene.receiver.receipts()
    for receipt in receipts:
        by_duty[receipt.duty].append(receipt)
    assert by_duty.keys() == duties, "something was sent that no committed transaction had emitted for that endpoint"
    repeated: set[Claim] = set()
    for duty, found in by_duty.items():
        assert len({r.sha256 for r in found}) == 1, f"{duty}: not the same bytes on each attempt"
        attempts = [r.attempt for r in found]
        assert attempts == sorted(set(attempts)), f"{duty}: attempts were received in the order {attempts}"
        repeated.update((*duty, attempt) for attempt in attempts[:-1])
    log = logged(scene)
    unlogged = {(r.event_id, r.name, r.attempt) for r in receipts} - log.keys()
    assert not unlogged, f"received, but not in the log: {unlogged}"
    assert "exhausted" not in log.values()
    return Verdict(len(duties), len(receipts), frozenset(repeated), log)


def logged(scene: Scene) -> dict[Claim, str]:
    """The delivery log: outcome by event, endpoint's name and attempt."""
    names = {s.id: s.name for s in scene.subscribed}
    rows: list[Any] = scene.rows("SELECT event_id, subscription_id, attempt, outcome FROM dealix.attempts")
    log = {(event_id, names[subscription_id], attempt): outcome for event_id, subscription_id, attempt, outcome in rows}
    assert len(log) == len(rows), "an attempt is in the log twice"
    return log
