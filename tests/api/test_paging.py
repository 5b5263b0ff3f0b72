"""Cursors by themselves."""

from __future__ import annotations

import base64
import re
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import Problem
from api.paging import MAX_CHARACTERS, List

SHAPE: Final = re.compile(r"dlv_[0-9a-f]{24}")
FILTERS = st.lists(st.none() | st.booleans() | st.text(max_size=20), max_size=6)
POSITIONS = st.from_regex(SHAPE, fullmatch=True)


@given(FILTERS, POSITIONS)
def test_a_cursor_leads_back_to_its_position(filters: list[str | bool | None], position: str) -> None:
    pages = List("deliveries", filters)
    cursor = pages.cursor(position)
    assert pages.position(cursor, SHAPE) == position
    assert re.fullmatch(rf"[A-Za-z0-9_-]{{1,{MAX_CHARACTERS}}}", cursor)


@given(FILTERS, FILTERS, POSITIONS)
@pytest.mark.threat("N103")
def test_a_cursor_of_another_list_or_other_filters_is_refused(
    one: list[str | bool | None], other: list[str | bool | None], position: str
) -> None:
    cursor = List("deliveries", one).cursor(position)
    with pytest.raises(Problem):
        List("webhooks", one).position(cursor, SHAPE)
    if [*map(repr, one)] != [*map(repr, other)]:
        with pytest.raises(Problem):
            List("deliveries", other).position(cursor, SHAPE)


@given(POSITIONS, st.integers(0, 1000), st.integers(0, 7))
@pytest.mark.threat("N103")
def test_a_damaged_cursor_is_refused(position: str, place: int, bit: int) -> None:
    pages = List("deliveries", ["acme"])
    cursor = pages.cursor(position)
    content = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    content[place % len(content)] ^= 1 << bit
    damaged = base64.urlsafe_b64encode(content).decode().rstrip("=")
    for bad in (damaged, cursor[: place % len(cursor)], cursor + "A", f"{cursor}=", f" {cursor}", cursor + "\n"):
        with pytest.raises(Problem) as caught:
            pages.position(bad, SHAPE)
        assert caught.value.errors[0].field == "cursor"


@given(st.text(max_size=60))
@pytest.mark.threat("N103")
def test_any_text_is_refused_with_a_422(text: str) -> None:
    with pytest.raises(Problem) as caught:
        List("deliveries", ["acme"]).position(text, SHAPE)
    assert caught.value.status == 422


def test_a_well_made_cursor_of_another_shape_is_refused() -> None:
    pages = List("deliveries", ["acme"])
    with pytest.raises(Problem):
        pages.position(pages.cursor("' OR 1=1"), SHAPE)
