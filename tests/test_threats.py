"""Each threat of the table in docs/security.md has a test, or a word why it needs none."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

TESTS: Final = Path(__file__).parent
TABLE: Final = TESTS.parent / "docs/security.md"
NUMBERS: Final = [f"N{n:02}" for n in range(1, 125)]
NOT_APPLICABLE: Final = "Does not apply: "


class Threat(NamedTuple):
    """A row of the table. `tested_in` are the test files' paths below tests, without `.py`."""

    number: str
    threat: str
    answer: str
    tested_in: frozenset[str]


def threats(text: str) -> list[Threat]:
    """The rows of a table whose first column is a number."""
    rows = re.findall(r"^\| (N\d+) \| (.+?) \| (.+?) \|(.*?)\|$", text, re.MULTILINE)
    return [Threat(n, threat, answer, frozenset(re.findall(r"`([\w/]+)`", cell))) for n, threat, answer, cell in rows]


def marked(source: str) -> Iterator[str]:
    """The numbers that the tests of a file name, by `pytest.mark.threat` or in a test's own name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.threat":
            for argument in node.args:
                yield from span(ast.literal_eval(argument))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (found.upper() for found in re.findall(r"^test_(n\d+)_", node.name))


def span(text: str) -> list[str]:
    """The numbers of "N07", or of "N07-N09"."""
    first, _, last = text.partition("-")
    return NUMBERS[NUMBERS.index(first) : NUMBERS.index(last or first) + 1]


def where_tested() -> dict[str, set[str]]:
    """Where each number is tested."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        for number in marked(path.read_text()):
            found[number].add(str(path.relative_to(TESTS).with_suffix("")))
    return found


def faults(rows: list[Threat], found: Mapping[str, set[str]]) -> list[str]:
    """What is wrong between a table and the tests."""
    said = [f"the numbers are {[row.number for row in rows]}"] if [row.number for row in rows] != NUMBERS else []
    for row in rows:
        here = found.get(row.number, set())
        if row.answer.startswith(NOT_APPLICABLE):
            said += [f"{row.number} does not apply, and is tested in {sorted(here)}"] if here or row.tested_in else []
        elif not here:
            said.append(f"{row.number} has no test")
        elif here ^ row.tested_in:
            said.append(f"{row.number} is tested in {sorted(here)}, the table says {sorted(row.tested_in)}")
    return said


def test_every_threat_has_a_test_that_the_table_names_or_a_reason_why_it_needs_none() -> None:
    assert faults(threats(TABLE.read_text()), where_tested()) == []


@pytest.mark.parametrize(
    ("row", "found", "fault"),
    [
        (Threat("N01", "a", "b", frozenset()), {}, "N01 has no test"),
        (Threat("N01", "a", "b", frozenset({"x"})), {}, "N01 has no test"),
        (Threat("N01", "a", "b", frozenset({"x"})), {"N01": {"x", "y"}}, "the table says ['x']"),
        (Threat("N01", "a", f"{NOT_APPLICABLE}so", frozenset()), {"N01": {"x"}}, "is tested in ['x']"),
    ],
)
def test_this_check_can_fail(row: Threat, found: dict[str, set[str]], fault: str) -> None:
    rest = [Threat(number, "a", f"{NOT_APPLICABLE}so", frozenset()) for number in NUMBERS[1:]]
    assert len(faults([row, *rest], found)) == 1
    assert fault in faults([row, *rest], found)[0]
    assert "the numbers are" in faults(rest, {})[0]


def test_marks_are_read_however_they_are_written() -> None:
    source = '@pytest.mark.threat("N03", "N07-N09")\ndef test_a(): ...\n\ndef test_n12_b(): ...\n'
    assert sorted(marked(source)) == ["N03", "N07", "N08", "N09", "N12"]
