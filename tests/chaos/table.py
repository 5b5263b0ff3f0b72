"""Renders the figures of the last run of each test into docs/reliability.md, between its two marks.

Run by `make chaos` and `make soak`, or by hand: `python -m tests.chaos.table`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

from tests.chaos.figures import OUT, Entry
from tests.support.daemon_process import ROOT

DOCUMENT: Final = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: make chaos -->\n", "<!-- end of table -->\n"
HEAD: Final = (
    "| case | fault | injected | events | rolled back | deliveries | lost | duplicates (bound) | recovered | test |\n"
    "|---|---|--:|--:|--:|--:|--:|--:|--:|---|\n"
)


def entries() -> list[Entry]:
    """In the order of their cases: C2 before C10."""
    found = [Entry(**json.loads(line)) for path in OUT.glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted(found, key=lambda e: ([int(n) for n in re.findall(r"\d+", e.case)] or [99], e.case, e.fault))


def row(entry: Entry) -> str:
    recovery = "–" if entry.recovery_s is None else f"{entry.recovery_s:.2f} s"
    numbers = (entry.times, entry.events, entry.rolled_back, entry.deliveries)
    counted = " | ".join(f"{number:,}" for number in numbers)
    test = entry.test.replace("::", " ").partition(" ")[2]
    return (
        f"| {entry.case} | {entry.fault} | {counted} | {entry.lost} | {entry.duplicates} ({entry.bound})"
        f" | {recovery} | `{test}` |\n"
    )


def total(found: Sequence[Entry]) -> str:
    times, events, rolled_back, deliveries, lost, duplicates = (
        sum(getattr(entry, name) for entry in found)
        for name in ("times", "events", "rolled_back", "deliveries", "lost", "duplicates")
    )
    return (
        f"| | **all** | {times:,} | **{events:,}** | {rolled_back:,} | {deliveries:,} | **{lost}** | {duplicates}"
        " | | |\n"
    )


def main() -> None:
    found = entries()
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(before + BEGIN + HEAD + "".join(map(row, found)) + total(found) + END + after)


if __name__ == "__main__":
    main()
