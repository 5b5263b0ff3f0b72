"""What each answer means for its delivery, how long a wait is, and when there is no further one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daemon.model import ErrorKind, Outcome
from daemon.policy.retry import MAX_RETRY_AFTER_S, Decision, Verdict, decide, retry_after_s, verdict

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
SCHEDULE_S = (0.0, 30.0, 300.0, 1800.0, 21600.0, 86400.0)
chances = st.floats(0, 1, exclude_max=True)


def answered(status: int) -> Outcome:
    return Outcome(status, None, None, 1)


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.threat("N45")
def test_each_status_has_the_verdict_of_the_contract() -> None:
    expected: dict[int, Verdict] = dict.fromkeys(range(200, 600), "failed")
    expected |= dict.fromkeys(range(200, 300), "delivered")
    expected |= dict.fromkeys([408, 429, *range(500, 600)], "retry")
    expected[410] = "gone"
    assert {status: verdict(answered(status)) for status in range(200, 600)} == expected


@pytest.mark.parametrize("kind", ["dns", "connect", "tls", "timeout", "blocked", "protocol", "reset"])
def test_without_a_complete_header_block_it_is_a_retry(kind: ErrorKind) -> None:
    assert verdict(Outcome(None, kind, "No.", 1)) == "retry"


# ── Retry-After ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 120\t", 120.0),
        ("00120", 120.0),
        ("86400", 86_400.0),
        ("86401", 86_400.0),
        ("999999", 86_400.0),
        ("1000000", 86_400.0),
        ("1" + "0" * 30, 86_400.0),
        ("9" * 5000, 86_400.0),
        (None, 0.0),
        ("", 0.0),
        (" ", 0.0),
        ("-1", 0.0),
        ("+5", 0.0),
        ("1.5", 0.0),
        ("1e308", 0.0),
        ("1e5", 0.0),
        ("0x10", 0.0),
        ("inf", 0.0),
        ("NaN", 0.0),
        ("soon", 0.0),
        ("120, 60", 0.0),
        ("١٢٠", 0.0),
        ("１２０", 0.0),  # noqa: RUF001 - digits of another script are no digits of HTTP
        ("120\xa0", 0.0),
        ("Tue, 24 Nov 2026 12:02:00 GMT", 120.0),
        ("Tuesday, 24-Nov-26 12:02:00 GMT", 120.0),
        ("Tue Nov 24 12:02:00 2026", 120.0),
        ("Tue, 24 Nov 2026 13:02:00 +0100", 120.0),
        ("Tue, 24 Nov 2026 11:59:59 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Mon, 01 Jan 0001 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0),
        ("Fri, 31 Dec 99999 23:59:59 GMT", 0.0),
        ("Tue, 31 Feb 2026 12:02:00 GMT", 0.0),
        ("Tue, 24 Nov 2026 25:61:61 GMT", 0.0),
    ],
)
@pytest.mark.threat("N46")
def test_retry_after_is_seconds_or_a_date_and_anything_else_is_nothing(value: str | None, expected_s: float) -> None:
    assert retry_after_s(value, NOW) == expected_s


@given(value=st.text() | st.text(alphabet="0123456789:,+- GMTueNov"))
@example(value="Tue, 24 Nov 2026 12:02:00 +9999999999")
@example(value="Tue,")
@example(value=",")
@example(value="Mon, 01 Jan 0001 00:00:00 +2359")
@pytest.mark.threat("N46")
def test_no_retry_after_raises_or_leaves_its_bounds(value: str) -> None:
    assert 0.0 <= retry_after_s(value, NOW) <= MAX_RETRY_AFTER_S


@given(seconds=st.integers(-100_000, 200_000))
def test_a_date_counts_from_now_within_a_day(seconds: int) -> None:
    value = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert retry_after_s(value, NOW) == min(max(seconds, 0), 86_400)


# ── decisions ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("judged", ["delivered", "gone", "failed"])
def test_what_is_no_retry_ends_the_delivery_whatever_else_holds(judged: Verdict) -> None:
    decision = decide(judged, attempt=1, steps=0, schedule_s=SCHEDULE_S, asked_s=60.0, chance=0.5)
    assert decision == Decision(judged, None)


def test_six_attempts_follow_the_schedule_and_the_last_one_exhausts_it() -> None:
    decisions = [
        decide("retry", attempt=steps + 1, steps=steps, schedule_s=SCHEDULE_S, asked_s=0.0, chance=0.0)
        for steps in range(6)
    ]
    assert [d.wait_s for d in decisions] == [30.0, 300.0, 1800.0, 21600.0, 86400.0, None]
    assert [d.result for d in decisions] == ["retry"] * 5 + ["exhausted"]


@given(steps=st.integers(0, 4), chance=chances)
def test_each_wait_is_jittered_by_up_to_a_tenth_and_never_shortened(steps: int, chance: float) -> None:
    decision = decide("retry", attempt=steps + 1, steps=steps, schedule_s=SCHEDULE_S, asked_s=0.0, chance=chance)
    assert decision.wait_s is not None
    assert SCHEDULE_S[steps + 1] <= decision.wait_s <= SCHEDULE_S[steps + 1] * 1.1


@given(asked_s=st.floats(0, MAX_RETRY_AFTER_S), chance=chances)
def test_what_the_receiver_asked_for_counts_where_it_is_longer(asked_s: float, chance: float) -> None:
    decision = decide("retry", attempt=1, steps=0, schedule_s=SCHEDULE_S, asked_s=asked_s, chance=chance)
    assert decision.wait_s == max(30.0 * (1 + 0.1 * chance), asked_s)


def test_interrupted_attempts_use_no_step_but_count_towards_the_cap_of_twenty() -> None:
    def after(attempt: int) -> Decision:
        return decide("retry", attempt=attempt, steps=2, schedule_s=SCHEDULE_S, asked_s=0.0, chance=0.0)

    assert after(19) == Decision("retry", 1800.0)
    assert after(20) == Decision("exhausted", None)
    assert after(21) == Decision("exhausted", None)


def test_a_schedule_of_one_attempt_is_exhausted_by_it() -> None:
    assert decide("retry", attempt=1, steps=0, schedule_s=(0.0,), asked_s=0.0, chance=0.0) == Decision(
        "exhausted", None
    )


def test_a_retry_that_a_person_asked_for_has_no_steps_left() -> None:
    assert decide("retry", attempt=7, steps=20, schedule_s=SCHEDULE_S, asked_s=0.0, chance=0.0).result == "exhausted"
