"""What Postgres reads of the arrays that are given to it as text."""

from __future__ import annotations

import string

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.store.arrays import array

IDENTIFIERS = st.one_of(
    st.text(string.ascii_letters + string.digits + "_.:-", min_size=1, max_size=128),
    st.sampled_from(["NULL", "null", "{}", "a,b", " a ", "-", "."]),
)


@settings(deadline=None)
@given(numbers=st.lists(st.integers(-(2**63), 2**63 - 1)), names=st.lists(IDENTIFIERS))
def test_postgres_reads_what_was_given(embedded_server: str, numbers: list[int], names: list[str]) -> None:
    with psycopg.connect(embedded_server) as db:
        ((read_numbers, read_names),) = db.execute(
            "SELECT %s::bigint[], %s::text[]", (array(numbers), array(names))
        ).fetchall()
    assert read_numbers == numbers
    assert read_names == names
