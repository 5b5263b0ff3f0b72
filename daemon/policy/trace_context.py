"""Where something stands in a trace: the header `traceparent`, and what follows from an event's identity. Pure.

W3C Trace Context (https://www.w3.org/TR/trace-context/), version 00. `dealix.emit` judges a header by the same rules.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec

SAMPLED: Final = 0x01
RANDOM: Final = 0x02
"""Level 2 of the recommendation: the trace id is random. Level 1 has it ignored; who knows it wants it handed on."""

# A later version may append fields behind a dash; of what it says only these four are known (section 3.2.4).
_HEADER: Final = re.compile(
    r"(?P<version>00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})"
    r"-(?P<trace_id>(?!0{32})[0-9a-f]{32})-(?P<span_id>(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?:-.*)?",
    re.DOTALL,
)


class TraceContext(msgspec.Struct, frozen=True, gc=False):
    """One span's place: a trace of 128 bits, a span of 64, neither of them 0, and flags of 8."""

    trace_id: int
    span_id: int
    flags: int

    @property
    def is_sampled(self) -> bool:
        """Whether its spans are to be kept."""
        return bool(self.flags & SAMPLED)

    @property
    def header(self) -> str:
        """As `traceparent` says it."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"

    def child(self, span_id: int) -> TraceContext:
        """Another span of the same trace."""
        return TraceContext(self.trace_id, span_id, self.flags)


def parse(header: str | None) -> TraceContext | None:
    """What a `traceparent` says; None for none and for a malformed one, which is ignored (section 3.2.2)."""
    found = None if header is None else _HEADER.fullmatch(header)
    if found is None:
        return None
    known = SAMPLED | RANDOM if found["version"] == "00" else SAMPLED
    return TraceContext(int(found["trace_id"], 16), int(found["span_id"], 16), int(found["flags"], 16) & known)


def is_chosen(trace_id: int, ratio: float) -> bool:
    """Whether a trace that begins here is among the `ratio` (0–1) that are kept: the same on every daemon.

    As OpenTelemetry's TraceIdRatioBased sampler judges it.
    """
    return trace_id & (2**64 - 1) < round(ratio * 2**64)


def fan_out(
    customer_id: str, event_id: str, given: str | None, *, ratio: float
) -> tuple[TraceContext, TraceContext | None]:
    """The place of an event's fan-out, and its parent's: that of the `traceparent` that came with the event, if any.

    It follows from the event's identity: so whoever makes an attempt, hours later and on another daemon, knows it
    though nobody has stored it. Without a parent it begins a trace, which is kept by `ratio`.
    """
    digest = hashlib.sha256(f"{customer_id} {event_id}".encode()).digest()
    span_id = int.from_bytes(digest[16:24], "big")
    parent = parse(given)
    if parent is not None:
        return parent.child(span_id), parent
    trace_id = int.from_bytes(digest[:16], "big")
    return TraceContext(trace_id, span_id, SAMPLED if is_chosen(trace_id, ratio) else 0), None
