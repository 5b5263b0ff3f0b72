"""W3C Trace Context: which headers count, what is made of them, and what follows from an event's identity."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.policy.trace_context import TraceContext, fan_out, is_chosen, parse
from tests.support.traceparents import BAD, GIVEN, GOOD, SPAN_ID, TRACE_ID

CONTEXTS = st.builds(
    TraceContext,
    st.integers(min_value=1, max_value=2**128 - 1),
    st.integers(min_value=1, max_value=2**64 - 1),
    st.integers(min_value=0, max_value=3),
)


@pytest.mark.parametrize(("header", "understood"), GOOD.items())
def test_a_valid_header_is_understood(header: str, understood: str) -> None:
    context = parse(header)
    assert context is not None
    assert context.header == understood


@pytest.mark.parametrize("header", BAD)
def test_a_malformed_header_counts_for_none(header: str) -> None:
    assert parse(header) is None


def test_no_header_is_no_context() -> None:
    assert parse(None) is None


def test_flags_that_nobody_knows_are_not_handed_on() -> None:
    for version, flags, kept in (("00", "ff", "03"), ("00", "02", "02"), ("00", "fc", "00"), ("01", "ff", "01")):
        context = parse(f"{version}-{TRACE_ID}-{SPAN_ID}-{flags}")
        assert context is not None
        assert context.header == f"00-{TRACE_ID}-{SPAN_ID}-{kept}"


@given(CONTEXTS)
def test_a_context_survives_its_header(context: TraceContext) -> None:
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", context.header)
    assert parse(context.header) == context


@given(st.text(alphabet="0123456789abcdefg-", min_size=50, max_size=60))
def test_what_is_taken_is_never_more_than_a_header(text: str) -> None:
    context = parse(text)
    assert context is None or (context.trace_id and context.span_id and len(context.header) == 55)


def test_a_fan_out_is_the_child_of_what_its_event_came_with() -> None:
    context, parent = fan_out("acme", "e1", GIVEN, ratio=0.0)
    assert parent == parse(GIVEN)
    assert (context.trace_id, context.flags) == (int(TRACE_ID, 16), 1)
    assert context.span_id != int(SPAN_ID, 16)
    assert fan_out("acme", "e1", GIVEN.removesuffix("01") + "00", ratio=1.0)[0].is_sampled is False


def test_a_fan_out_is_known_by_its_events_customer_and_id_alone() -> None:
    first, no_parent = fan_out("acme", "e1", None, ratio=1.0)
    assert no_parent is None
    assert fan_out("acme", "e1", None, ratio=1.0)[0] == first
    others = {fan_out(customer, event, None, ratio=1.0)[0] for customer, event in (("acme", "e2"), ("bolt", "e1"))}
    assert len({one.trace_id for one in (first, *others)}) == len({one.span_id for one in (first, *others)}) == 3
    assert fan_out("acme", "e1", GIVEN, ratio=1.0)[0].span_id == first.span_id


def test_a_malformed_header_in_the_database_is_as_good_as_none() -> None:
    assert fan_out("acme", "e1", "00-evil\r\nX: y", ratio=1.0) == fan_out("acme", "e1", None, ratio=1.0)


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0, 0), (0.1, 60, 140), (0.5, 430, 570), (1.0, 1000, 1000)])
def test_of_traces_that_begin_here_so_many_are_kept(ratio: float, low: int, high: int) -> None:
    kept = sum(fan_out("acme", f"e{n}", None, ratio=ratio)[0].is_sampled for n in range(1000))
    assert low <= kept <= high


def test_a_higher_ratio_keeps_what_a_lower_one_keeps() -> None:
    ids = [fan_out("acme", f"e{n}", None, ratio=1.0)[0].trace_id for n in range(1000)]
    assert {one for one in ids if is_chosen(one, 0.2)} < {one for one in ids if is_chosen(one, 0.6)}
    assert is_chosen(2**64 - 1, 1.0)
    assert not is_chosen(0, 0.0)
