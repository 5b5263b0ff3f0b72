"""What dealix.emit takes for a payload: kept byte for byte, or refused in time for what no receiver could read."""

from __future__ import annotations

import json
from typing import Final

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.emitting import Session, emit, refusal

KEPT: Final = '{ "z":1.0, "a" : -0.0,"n":12345678901234567890123, "z": "\\u00e9\\/\\n", "e": 1E5 }'


@pytest.mark.parametrize("payload", [KEPT, '{"n": 1e131071}', '{"n": ' + "7" * 5000 + "}", '{"é😀": "\u2028\x7f"}'])
@pytest.mark.threat("N75-N76")
def test_the_text_is_kept_byte_for_byte(db: Session, payload: str) -> None:
    emit(db, payload)
    assert db.execute("SELECT data FROM dealix.events").fetchall() == [(payload,)]


@pytest.mark.parametrize(
    "payload",
    ["", " ", "{", '{"a"}', "{'a': 1}", '{"a": NaN}', '{"a": Infinity}', '{"a": 01}', '{"a": 1,}', "{} {}",
     '{"a": "\n"}', "\ufeff{}", '{"a": "\\x"}', '{"a": "\\u12"}', '{"a": ' + "[" * 101, "[" * 60_000,
     "]" * 200 + "[" * 200, '{"a": [}' + "[]" * 200],
)  # fmt: skip
def test_malformed_json_is_22p02_however_many_brackets_it_has(db: Session, payload: str) -> None:
    assert refusal(db, payload) == ("22P02", "invalid input syntax for type json")


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return '{"a": ' + opening * (depth - 1) + "0" * (opening != "[") + closing * (depth - 1) + "}"


@pytest.mark.threat("N71")
def test_a_payload_may_be_100_deep_and_no_deeper(db: Session) -> None:
    emit(db, nested(100))
    emit(db, nested(100, '{"k": ', "}"))
    emit(db, '{"a": [' + ",".join(["[[]]"] * 500) + "]}")
    emit(db, '{"a": "' + "[" * 1000 + '\\"' + "{" * 1000 + '", "b": "\\\\"}')
    db.execute("TRUNCATE dealix.events")
    for deep in (nested(101), nested(101, '{"k": ', "}"), nested(60_000), nested(101)[:-1] + ', "b": "]]]]"}'):
        assert refusal(db, deep) == ("22023", "payload is nested more than 100 deep")


@pytest.mark.threat("N70", "N109")
def test_a_payload_may_have_256_kib_and_no_byte_more(db: Session) -> None:
    frame = len('{"a": ""}')
    emit(db, '{"a": "' + "x" * (262144 - frame) + '"}')
    emit(db, '{"a": "' + "é" * ((262144 - frame) // 2) + '"}')
    db.execute("TRUNCATE dealix.events")
    over = "payload has 262145 bytes: at most 262144 (256 KiB) are allowed"
    assert refusal(db, '{"a": "' + "x" * (262145 - frame) + '"}') == ("22023", over)
    assert refusal(db, '{"a": "' + "é" * ((262144 - frame) // 2) + 'xx"}')[1] == over


@pytest.mark.threat("N75")
def test_a_jsonb_that_grows_past_256_kib_is_refused(db: Session) -> None:
    bomb = '{"a": 1e131071, "b": 1e131071, "c": 1e131071}'
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="payload has 3932"):
        db.execute("SELECT * FROM dealix.emit('acme', 'deal.won', %s::jsonb)", (bomb,))
    emit(db, bomb)


@pytest.mark.parametrize(
    "text", ["\\\\u0000", "\\\\ud800", "\\ud83d\\ude00", "\\uD83D\\uDE00", "\\u0001", "\\uffff", "u0000"]
)
def test_escapes_of_real_characters_are_kept(db: Session, text: str) -> None:
    emit(db, f'{{"a": "{text}"}}')
    assert db.execute("SELECT data FROM dealix.events").fetchall() == [(f'{{"a": "{text}"}}',)]


@pytest.mark.parametrize(
    "text",
    ["\\ud83d", "\\ude00", "\\uDE00\\uD83D", "\\ud83d\\ud83d\\ude00", "\\ud83d\\\\\\ude00", "\\ud83dx\\ude00",
     "\\\\\\ud800", "\\ud83d\\u0041", "\\udbff\\udfff\\udfff"],
)  # fmt: skip
@pytest.mark.threat("N74")
def test_a_lone_surrogate_is_refused_wherever_it_hides(db: Session, text: str) -> None:
    assert refusal(db, f'{{"a": "{text}"}}') == (
        "22023",
        "payload contains a lone surrogate escape, which is not a character",
    )


@pytest.mark.parametrize("text", ["\\u0000", "x\\\\\\u0000", "\\ud83d\\ude00\\u0000"])
@pytest.mark.threat("N73")
def test_the_escape_of_nul_is_refused_wherever_it_hides(db: Session, text: str) -> None:
    for payload in (f'{{"a": "{text}"}}', f'{{"{text}": 1}}'):
        sqlstate, message = refusal(db, payload)
        assert sqlstate == "22023"
        assert message.startswith("payload contains the escape \\u0000")


HARD: Final = (
    '{"a": "' + "\\\\" * 130_000 + '"}',
    '{"a": "' + "\\u0001" * 43_000 + '"}',
    '{"a": "' + "\\ud83d\\ude00" * 21_000 + '"}',
    '{"a": [' + "[]," * 87_000 + "0]}",
    '{"a": [' + '"[",' * 65_000 + "0]}",
    '{"a": "' + "\\" * 260_001,
    "[" * 262_144,
    '"' * 262_143,
    '{"' + '":{"' * 65_000,
)


@pytest.mark.parametrize("payload", HARD, ids=range(len(HARD)))
def test_no_payload_of_the_allowed_size_takes_long_to_judge(db: Session, payload: str) -> None:
    db.execute("SET statement_timeout = '2s'")
    try:
        emit(db, payload)
    except psycopg.Error as e:
        assert e.sqlstate in {"22023", "22P02"}  # noqa: PT017 either verdict is right, as long as it comes soon


def readable(payload: str) -> bool:
    """Whether Python's own reader finds no NUL and no lone surrogate in an object of one string."""
    ((key, value),) = json.loads(payload).items()
    return not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in key + value)


ESCAPES: Final = st.lists(
    st.sampled_from(
        ["\\\\", "\\u0000", "\\ud83d", "\\uDE00", "\\uD800", "\\udfff", "\\u0041", '\\"', "u0000", "ud83d", "x"]
    ),
    max_size=8,
).map("".join)


# One session for all examples is what is wanted: each emit is rolled back.
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=ESCAPES, value=ESCAPES)
@example(key="\\ud83d\\\\\\ude00", value="")
@example(key="", value="\\\\u0000\\\\\\u0000")
def test_of_all_mixtures_of_escapes_exactly_those_are_refused_that_hide_a_nul_or_half_a_character(
    db: Session, key: str, value: str
) -> None:
    payload = f'{{"{key}": "{value}"}}'
    with db.transaction(force_rollback=True):
        try:
            emit(db, payload)
        except psycopg.errors.InvalidParameterValue:
            accepted = False
        else:
            accepted = True
            assert db.execute("SELECT data FROM dealix.events").fetchall() == [(payload,)]
    assert accepted == readable(payload)
