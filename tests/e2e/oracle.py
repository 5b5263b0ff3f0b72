"""The judgement: what the application committed against what the receiver saw and what the log says.

It reads the ledger (the application's own table, written in the emitting transactions), the receiver's book, and the
product's tables only where they are what is judged.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

from tests.e2e.scene import Scene, Subscribed
from tests.e2e.traffic import Receipt
from tests.support.daemon_process import until

Duty = tuple[str, str]
Claim = tuple[str, str, int]
LOOK_S: Final = 0.1


ARRIVING_S: Final = 0.3
"""What a busy machine may add between the start of a POST and its last byte at the receiver."""
STALE_S: Final = 5.0
"""How old a signature may be when the request is complete, by the clock of a daemon that there was."""
SILENT_S: Final = 1.0
"""No POST starts later than this after its subscription was disabled."""
ENDS: Final = {"delivered", "failed", "exhausted", "expired", "gone"}


@dataclass(frozen=True, slots=True)
class Logged:
    """A row of the delivery log: how the attempt ended, and whether an answer came."""

    outcome: str
    status: int | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the numbers came to. `logged` is the delivery log: outcome by event, endpoint's name and attempt."""

    events: int
    duties: int
    receipts: int
    repeated: frozenset[Claim]
    """Attempts that the receiver took, and after which the same duty came once more: each is one duplicate."""
    logged: dict[Claim, str]
    lost: int = 0
    """Duties that nobody answered and nothing accounts for. `judge` fails where there is one; so it is a measured 0."""

    @property
    def duplicates(self) -> int:
        return len(self.repeated)

    @property
    def interrupted(self) -> set[Claim]:
        return {claim for claim, outcome in self.logged.items() if outcome == "interrupted"}


def expected(scene: Scene) -> set[Duty]:
    """Every committed event for each subscription that wants it. Those that are healthy are enabled all the time."""
    duties: set[Duty] = set()
    by_customer: defaultdict[str, list[Subscribed]] = defaultdict(list)
    for subscribed in scene.subscribed:
        by_customer[subscribed.customer_id].append(subscribed)
    for event_id, customer_id, event_type, matched in scene.rows("SELECT * FROM ledger"):
        wanted = [s for s in by_customer[customer_id] if not s.events or event_type in s.events]
        if matched == 0 and not all(s.healthy for s in wanted):
            continue  # disabled when the event was emitted
        assert len(wanted) == matched, f"{event_id} matched {matched} subscriptions, not {len(wanted)}"
        duties.update((event_id, s.name) for s in wanted)
    return duties


def owed(scene: Scene) -> set[Duty]:
    """Those of the duties that have to end with a 2xx, since nothing is wrong with the endpoint."""
    healthy = {s.name for s in scene.subscribed if s.healthy}
    return {duty for duty in expected(scene) if duty[1] in healthy}


def wait_until_arrived(scene: Scene, *, within_s: float = 15.0) -> None:
    """Wait until each duty of this moment to a healthy endpoint was answered with 2xx."""
    duties = owed(scene)
    until(lambda: duties <= scene.receiver.answered(), within_s=within_s, what="every event at every endpoint")


def wait_until_done(scene: Scene, *, within_s: float) -> None:
    """Wait until each duty was answered with 2xx and the product has nothing left to do for healthy endpoints."""
    wait_until_arrived(scene, within_s=within_s)
    healthy = [s.id for s in scene.subscribed if s.healthy]
    until(lambda: scene.rows(LEFT, [healthy]) == [(0,)], within_s=within_s, what="everything recorded")


LEFT: Final = """
    SELECT (SELECT count(*) FROM dealix.deliveries WHERE subscription_id = ANY (%s))
         + (SELECT count(*) FROM dealix.outbox)
"""


def judge(scene: Scene, *, within_s: float = 15.0) -> Verdict:
    """Wait for the end, then check what holds whatever was killed: nothing lost, foreign, changed or unlogged."""
    wait_until_done(scene, within_s=within_s)
    duties = expected(scene)
    # In this order, since endpoints that are not well may still be tried: what has gone from one is in the next.
    receipts, claims, pending = scene.receiver.receipts(), scene.claims(), _pending(scene)
    rows = read_log(scene)
    repeated = _judge_receipts(scene, duties, receipts)
    _judge_log(scene, rows, claims, receipts)
    _judge_silences(scene, receipts)
    lost = duties - _accounted_for(scene, rows, pending)
    assert not lost, f"lost: {lost}"
    log = {claim: row.outcome for claim, row in rows.items()}
    return Verdict(len({event_id for event_id, _ in duties}), len(duties), len(receipts), repeated, log, len(lost))


def _judge_receipts(scene: Scene, duties: set[Duty], receipts: list[Receipt]) -> frozenset[Claim]:
    by_duty: defaultdict[Duty, list[Receipt]] = defaultdict(list)
    late: dict[Claim, str] = {}
    for receipt in receipts:
        by_duty[receipt.duty].append(receipt)
        assert receipt.signed is not False, f"{receipt.claim}: signed with another secret"
        is_fresh = any(abs(receipt.age_s + ahead_s) <= STALE_S for ahead_s in scene.clocks)
        if receipt.signed is not None and not is_fresh:
            late[receipt.claim] = f"{receipt.claim}: signed {receipt.age_s:.1f} s ago"
    # Nothing can call back what a freeze met between its last check and its write. One task runs at a time: one each.
    assert len(late) <= scene.thawed, "; ".join(late.values())
    foreign = by_duty.keys() - duties
    assert not foreign, f"something was sent that no committed transaction had emitted for that endpoint: {foreign}"
    repeated: set[Claim] = set()
    for duty, found in by_duty.items():
        assert len({r.sha256 for r in found}) == 1, f"{duty}: not the same bytes on each attempt"
        attempts = [r.attempt for r in found if r.claim not in late]
        assert attempts == sorted(set(attempts)), f"{duty}: attempts were received in the order {attempts}"
        in_order = sorted(found, key=lambda r: r.attempt)
        repeated.update(r.claim for r in in_order[:-1] if r.is_success)
    return frozenset(repeated)


def _judge_log(scene: Scene, rows: dict[Claim, Logged], claims: set[Claim], receipts: list[Receipt]) -> None:
    unlogged = {r.claim for r in receipts} - rows.keys() - claims
    assert not unlogged, f"received, but not in the log: {unlogged}"
    answers = {r.claim: r.status for _, r in scene.receiver.answers()}
    for claim, row in rows.items():
        if row.status is not None:
            assert row.status == answers.get(claim), f"{claim}: logged {row.status}, answered {answers.get(claim)}"
    healthy = {s.name for s in scene.subscribed if s.healthy}
    given_up = {claim for claim, row in rows.items() if row.outcome in {"failed", "exhausted"} and claim[1] in healthy}
    assert not given_up, f"given up, though nothing was wrong with the endpoint: {given_up}"


def _judge_silences(scene: Scene, receipts: list[Receipt]) -> None:
    for silence in scene.silences:
        late = [
            r.at - silence.since
            for r in receipts
            if r.name == silence.name and silence.since + SILENT_S + ARRIVING_S < r.at < silence.until
        ]
        assert not late, f"{silence.name}: {len(late)} requests after it was disabled, the last {max(late):.2f} s after"


def _pending(scene: Scene) -> set[Duty]:
    """What is still to be done: held, waiting for its next attempt, or on its way."""
    names = {s.id: s.name for s in scene.subscribed}
    rows = scene.rows("SELECT event_id, subscription_id FROM dealix.deliveries")
    return {(event_id, names[subscription_id]) for event_id, subscription_id in rows}


def _accounted_for(scene: Scene, rows: dict[Claim, Logged], pending: set[Duty]) -> set[Duty]:
    """What was answered with 2xx, ended in the log, or is still to be done."""
    ended = {(event_id, name) for (event_id, name, _), row in rows.items() if row.outcome in ENDS}
    return scene.receiver.answered() | ended | pending


def read_log(scene: Scene) -> dict[Claim, Logged]:
    """The delivery log by event, endpoint's name and attempt."""
    names = {s.id: s.name for s in scene.subscribed}
    rows: list[Any] = scene.rows("SELECT event_id, subscription_id, attempt, outcome, status_code FROM dealix.attempts")
    log = {
        (event_id, names[subscription_id], attempt): Logged(outcome, status)
        for event_id, subscription_id, attempt, outcome, status in rows
    }
    assert len(log) == len(rows), "an attempt is in the log twice"
    return log


def logged(scene: Scene) -> dict[Claim, str]:
    """The delivery log: outcome by event, endpoint's name and attempt."""
    return {claim: row.outcome for claim, row in read_log(scene).items()}
