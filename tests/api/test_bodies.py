"""Decoding by itself: what JSON text is let through, and that it is let through as it is."""

from __future__ import annotations

import json
import time
from typing import Final

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from api.bodies import check_payload, decode
from api.errors import Problem
from api.routes.events import EventToEmit
from daemon.errors import EmitRejected
from daemon.ids import CustomerId
from daemon.store import emit
from daemon.store.connection import Connection, connect

HEAD: Final = b'{"customer_id":"acme","event_type":"deal.won","payload":'

JSON_BITS: Final = r'{ } [ ] " \ \\ \" \u0000 \u00 \ud800 \uDC00 \ud83d\ude00 a : , 1 - . e9 null {"a": }} "k":" "}'
PIECES: Final = st.sampled_from([*JSON_BITS.split(), " ", "\n", "\x00", "é", "\U0001f600"])
TEXT: Final = st.text()  # without surrogates, with NUL
VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def payload_of(text: bytes) -> str:
    """The payload as a route gets it from a body. Raises Problem."""
    event = decode(HEAD + text + b"}", EventToEmit)
    assert isinstance(event.payload, msgspec.Raw)
    return check_payload(event.payload, "payload")


def judge(text: str) -> str | Problem:
    """As `payload_of`, with the refusal as a value."""
    try:
        return payload_of(text.encode())
    except Problem as problem:
        return problem


@given(VALUES, st.booleans(), st.sampled_from([None, 0, 2]))
@pytest.mark.threat("N75-N76")
def test_every_json_object_comes_out_as_it_went_in(value: object, ascii_only: bool, indent: int | None) -> None:  # noqa: FBT001 Hypothesis names it
    text = json.dumps({"": value}, ensure_ascii=ascii_only, indent=indent)
    judged = judge(text)
    if isinstance(judged, Problem):
        assert "\\u0000" in text
        assert "\\u0000" in judged.detail
    else:
        assert judged == text


@pytest.mark.parametrize(("depth", "fits"), [(99, True), (100, True), (101, False), (400, False), (2000, False)])
@pytest.mark.parametrize("pair", [("[", "]"), ('{"a":', "}")])
@pytest.mark.threat("N71")
def test_a_hundred_levels_are_enough(depth: int, pair: tuple[str, str], *, fits: bool) -> None:
    text = '{"a":' + pair[0] * (depth - 1) + "1" + pair[1] * (depth - 1) + "}"
    if fits:
        assert payload_of(text.encode()) == text
    else:
        with pytest.raises(Problem) as caught:
            payload_of(text.encode())
        assert (caught.value.status, caught.value.code) == (422, "invalid")


def test_brackets_in_strings_are_no_levels_and_many_side_by_side_are_not_deep() -> None:
    for text in (r'{"a":"' + "[{" * 500 + r'\"[\\"}', '{"a":[' + "[],{}," * 20_000 + "1]}"):
        assert payload_of(text.encode()) == text


@pytest.mark.parametrize(("size", "fits"), [(262_144, True), (262_145, False)])
@pytest.mark.threat("N70")
def test_a_payload_has_at_most_256_kib(size: int, *, fits: bool) -> None:
    text = '{"a":"' + "é" * ((size - 8) // 2) + "x" * (size % 2) + '"}'
    assert len(text.encode()) == size
    if fits:
        assert payload_of(text.encode()) == text
    else:
        with pytest.raises(Problem) as caught:
            payload_of(text.encode())
        assert caught.value.status == 413


@pytest.mark.threat("N78")
def test_the_worst_body_of_a_mebibyte_is_judged_in_a_blink() -> None:
    def payload(text: bytes) -> bytes:
        return b'{"payload":{"a":' + text + b"}}"

    for body in (
        b"[" * 1_000_000,
        b'{"' + b"x" * 1_000_000 + b'":1}',
        b"{" * 500_000 + b"}" * 500_000,
        b'{"' * 500_000,
        payload(b'"' + b"\\\\" * 500_000 + b'"'),
        payload(b'"' + b'\\"' * 500_000 + b'"'),
        payload(b'"' + b"\\u0041" * 160_000 + b'"'),
        payload(b'"' + b"\\ud83d\\ude00" * 80_000 + b'"'),
        payload(b"[" + b"[]," * 300_000 + b"1]"),
        payload(b"{" + b",".join(b'"%d":0' % n for n in range(90_000)) + b"}"),
    ):
        started_at = time.process_time()
        with pytest.raises(Problem):
            decode(body, EventToEmit)
        assert time.process_time() - started_at < 0.25, body[:40]  # 5 to 40 ms on a machine that is otherwise idle


@settings(max_examples=150)
@given(st.lists(PIECES, max_size=30).map("".join), st.booleans())
def test_no_text_is_more_than_refused(text: str, closed: bool) -> None:  # noqa: FBT001 Hypothesis names it
    judged = judge(f'{{"a":{text}}}' if closed else text)
    if isinstance(judged, Problem):
        assert judged.status in {400, 422}
    else:
        json.loads(judged)


JUDGED_TWICE: Final = [
    *(
        line.strip()
        for line in r"""
            {}   {"a":1e131071}   {"a":-0.0,"a":1}   { "a" : [ ] }   {"":""}   {"a":1e5,"b":-1E-5,"c":[true,false,null]}
            []   1   null   {a:1}   {'a':1}   {"a":1,}   {"a":1}{}   {"a":tru}   {"a":NaN}   {"a":01}   {"a":1.}
            {"a":.5}   {"a":+1}   {"a":"\x41"}   {"a":"\u0000"}   {"a":"\\u0000"}   {"a":"\\\u0000"}   {"\u0000":1}
            {"a":"\ud800"}   {"a":"\udc00"}   {"a":"\ud83d\ude00"}   {"a":"\ude00\ud83d"}   {"a":"\\ud800"}
            {"a":"\\\ud800"}   {"a":"\ud800\u0041"}   {"a":"\uD83D\uDE00"}   {"a":"\u12"}   {"a":"\ud83d\\ude00"}
            {"a":"\ud83d\\\ude00"}
        """.replace("   ", "\n").splitlines()
        if line.strip()
    ),
    '{"a":' + "9" * 5000 + "}",
    '{"a":' + "[" * 99 + "]" * 99 + "}",
    '{"a":' + "[" * 100 + "]" * 100 + "}",
    '{"a":"' + "x" * 262_136 + '"}',
    '{"a":"' + "x" * 262_137 + '"}',
    '{"a":"\t"}',
    '{"a":"é\U0001f600\u2028\x7f\ufffe"}',
]


async def test_http_and_dealix_emit_let_in_the_same_payloads(migrated_database: str) -> None:
    """Two judges, one law: no HTTP emit may fail in the database, and SQL emitters may not smuggle in more."""
    assert len(JUDGED_TWICE) > 40
    with trio.fail_after(20):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as conn:
            for text in JUDGED_TWICE:
                here, there = judge(text), await emit_refusal(conn, text)
                if there is None:
                    assert here == text, f"{text[:60]}: only HTTP refuses it"
                else:
                    assert isinstance(here, Problem), f"{text[:60]}: only SQL refuses it: {there}"
                    expected = 400 if there.sqlstate == "22P02" else 413 if "bytes" in str(there) else 422
                    assert here.status == expected, f"{text[:60]}: {here.detail} / {there}"


async def emit_refusal(conn: Connection, payload: str) -> EmitRejected | None:
    try:
        await emit.emit(conn, CustomerId("acme"), "deal.won", payload)
    except EmitRejected as refusal:
        return refusal
    return None
