"""The code that stands in a document, so that tests can run it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

DOCS: Final = Path(__file__).parents[2] / "docs"
_LINE: Final = re.compile(r"^(?:#+ (?P<heading>.+)|```(?P<fence>\w*))$")


class Block(NamedTuple):
    """A fenced block: the last heading before it, the language after its fence, and its lines."""

    heading: str
    fence: str
    code: str


def blocks(name: str) -> list[Block]:
    """The fenced blocks of a file in docs, in their order. No line in a block is a heading, whatever it looks like."""
    found: list[Block] = []
    heading, fence, lines = "", None, list[str]()
    for line in (DOCS / name).read_text().splitlines(keepends=True):
        match = _LINE.match(line.rstrip("\n"))
        if fence is not None and match and match["fence"] == "":
            found.append(Block(heading, fence, "".join(lines)))
            fence = None
        elif fence is not None:
            lines.append(line)
        elif match and match["fence"]:
            fence, lines = match["fence"], []
        elif match and match["heading"]:
            heading = match["heading"]
    return found


def under(name: str, heading: str) -> list[Block]:
    """The blocks that stand directly under a heading; fails where there is none."""
    found = [block for block in blocks(name) if block.heading == heading]
    assert found, f"docs/{name} has no code under {heading!r}"
    return found
