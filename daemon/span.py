"""A span that has ended: what daemon/tracing.py makes, and daemon/otlp.py takes away."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from daemon.policy.trace_context import TraceContext

Kind = Literal["server", "internal", "client"]
Facts = dict[str, str | int]


class Span(msgspec.Struct, frozen=True, gc=False):
    """Times are Unix nanoseconds. `error`: what went wrong, "" where `facts` say it already; None where nothing did."""

    name: Literal["emit", "fan-out", "attempt"]
    kind: Kind
    context: TraceContext
    parent: TraceContext | None
    started_ns: int
    ended_ns: int
    facts: Facts
    error: str | None


class Exporter(Protocol):
    """Whoever takes spans away."""

    def export(self, span: Span) -> None:
        """Take a span. Never waits and never raises; what is too much is dropped."""
        ...

    async def aclose(self) -> None:
        """Send what there is, within a few seconds."""
        ...
