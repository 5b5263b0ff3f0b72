"""Headers of W3C Trace Context, good and bad: the database and the daemon have to judge them alike."""

from __future__ import annotations

import secrets
from typing import Final

TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID: Final = "00f067aa0ba902b7"
GIVEN: Final = f"00-{TRACE_ID}-{SPAN_ID}-01"

GOOD: Final[dict[str, str]] = {
    GIVEN: GIVEN,
    f"00-{TRACE_ID}-{SPAN_ID}-00": f"00-{TRACE_ID}-{SPAN_ID}-00",
    f"01-{TRACE_ID}-{SPAN_ID}-01": GIVEN,
    f"cc-{TRACE_ID}-{SPAN_ID}-01-what-the-future-will-be-like": GIVEN,
    f"fe-{TRACE_ID}-{SPAN_ID}-01-": GIVEN,
    f"00-{'f' * 32}-{'f' * 16}-01": f"00-{'f' * 32}-{'f' * 16}-01",
    f"00-{'0' * 31}1-{'0' * 15}1-01": f"00-{'0' * 31}1-{'0' * 15}1-01",
}
"""What comes, and what is made of it."""

BAD: Final[tuple[str, ...]] = (
    "",
    " ",
    "nonsense",
    GIVEN.upper(),
    GIVEN[:-1],
    GIVEN + "-",
    GIVEN + "-00",
    GIVEN + "1",
    " " + GIVEN,
    GIVEN + "\n",
    f"ff-{TRACE_ID}-{SPAN_ID}-01",
    f"0g-{TRACE_ID}-{SPAN_ID}-01",
    f"00-{'0' * 32}-{SPAN_ID}-01",
    f"00-{TRACE_ID}-{'0' * 16}-01",
    f"00-{TRACE_ID[:-1]}-{SPAN_ID}-01",
    f"00-{TRACE_ID}-{SPAN_ID}0-01",
    f"00-{TRACE_ID[:-1]}g-{SPAN_ID}-01",
    f"00_{TRACE_ID}_{SPAN_ID}_01",
    f"00-{TRACE_ID}-{SPAN_ID}-0x",
    f"01-{TRACE_ID}-{SPAN_ID}-01more",
    f"{GIVEN},{GIVEN}",
    f"00-{TRACE_ID}-{SPAN_ID}-01; DROP TABLE dealix.events",
    "00-" + "٤" * 32 + f"-{SPAN_ID}-01",
    "0" * 10_000,
)
"""What is ignored."""


def new() -> str:
    """A header like no other, sampled."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def trace_of(header: str) -> str:
    return header.split("-")[1]


def span_of(header: str) -> str:
    return header.split("-")[2]
