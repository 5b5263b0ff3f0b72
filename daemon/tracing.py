"""Spans of what happens to an event: emit (over HTTP) → fan-out → attempt.

They are placed and timed here, and made only where traces are on; daemon/otlp.py, which alone knows OpenTelemetry,
brings them to a collector. A span is handed over when it has ended: nothing here is waited for.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from config.settings import Traces
from daemon.errors import SettingsInvalid
from daemon.model import AttemptRecord, Event, FannedOut, Outcome
from daemon.policy.endpoint_url import Target
from daemon.policy.trace_context import RANDOM, SAMPLED, TraceContext, fan_out, is_chosen, parse
from daemon.span import Exporter, Facts, Span


@dataclass(frozen=True, slots=True)
class Emitting:
    """The span of a request that emits. `context` is what its events are stored with."""

    context: TraceContext
    parent: TraceContext | None
    started_ns: int
    exporter: Exporter

    def end(self, route: str, facts: Facts, *, status_code: int | None, error: str | None = None) -> None:
        """The request was answered with `status_code`, or ended by the exception `error`."""
        if not self.context.is_sampled:
            return
        facts = {"http.request.method": "POST", "http.route": route} | facts
        if status_code is not None:
            facts["http.response.status_code"] = status_code
            if status_code >= 500:
                error = str(status_code)
        if error is not None:
            facts["error.type"] = error
        failed = None if error is None else ""
        span = Span("emit", "server", self.context, self.parent, self.started_ns, time.time_ns(), facts, failed)
        self.exporter.export(span)


@dataclass(frozen=True, slots=True)
class Attempting:
    """The span of an attempt. `context` is what its request carries where the subscription asks for it."""

    context: TraceContext
    parent: TraceContext | None
    started_ns: int
    exporter: Exporter

    def end(self, record: AttemptRecord, outcome: Outcome, target: Target | None) -> None:
        """The attempt came to this. Of the URL only host and port: its path may hold a token."""
        if not self.context.is_sampled:
            return
        facts: Facts = {
            "http.request.method": "POST",
            "dealix.customer.id": record.customer_id,
            "dealix.subscription.id": record.subscription_id,
            "dealix.event.id": record.event_id,
            "dealix.event.type": record.event_type,
            "dealix.attempt.id": record.id,
            "dealix.attempt.number": record.attempt,
            "dealix.attempt.outcome": record.outcome,
        }
        if target is not None:
            facts |= {"server.address": target.host, "server.port": target.port}
        if outcome.status_code is not None:
            facts["http.response.status_code"] = outcome.status_code
        failed = None
        if not record.success:
            failed = outcome.error or ""
            facts["error.type"] = outcome.error_kind or str(outcome.status_code)
        span = Span("attempt", "client", self.context, self.parent, self.started_ns, time.time_ns(), facts, failed)
        self.exporter.export(span)


class Tracer:
    """Of one daemon whose traces are on. `sample_ratio` (0–1): how many of the traces that begin here are kept.

    A trace that began elsewhere is kept if whoever began it says so.
    """

    def __init__(self, exporter: Exporter, *, sample_ratio: float) -> None:
        self._exporter = exporter
        self._ratio = sample_ratio

    def emitting(self, traceparent: str | None) -> Emitting:
        """A request that emits has begun, with this header if any."""
        parent = parse(traceparent)
        if parent is not None:
            context = parent.child(_span_id())
        else:
            trace_id = random.getrandbits(128) or 1
            flags = RANDOM | SAMPLED if is_chosen(trace_id, self._ratio) else RANDOM
            context = TraceContext(trace_id, _span_id(), flags)
        return Emitting(context, parent, time.time_ns(), self._exporter)

    def fanned_out(self, events: Iterable[FannedOut], *, started_ns: int) -> None:
        """These events have become deliveries, by a look into the outbox that began then."""
        ended_ns = time.time_ns()
        for event in events:
            context, parent = fan_out(event.customer_id, event.id, event.traceparent, ratio=self._ratio)
            if context.is_sampled:
                facts: Facts = {
                    "dealix.customer.id": event.customer_id,
                    "dealix.event.id": event.id,
                    "dealix.event.matched": event.matched,
                }
                span = Span("fan-out", "internal", context, parent, started_ns, ended_ns, facts, None)
                self._exporter.export(span)

    def attempting(self, event: Event) -> Attempting:
        """An attempt begins. Its parent is the event's fan-out; what matched nothing and is recovered had none."""
        fanned_out, parent = fan_out(event.customer_id, event.id, event.traceparent, ratio=self._ratio)
        if event.matched:
            parent = fanned_out
        return Attempting(fanned_out.child(_span_id()), parent, time.time_ns(), self._exporter)

    async def aclose(self) -> None:
        """Send what there is, within a few seconds."""
        await self._exporter.aclose()


def require(settings: Traces) -> None:
    """Raises SettingsInvalid where traces are on and the packages for them are not installed."""
    if settings.enabled:
        _exporter_class()


def open_tracer(settings: Traces) -> Tracer | None:
    """The daemon's tracer; None where traces are off. Inside the Trio run. Raises SettingsInvalid, as `require`."""
    if not settings.enabled:
        return None
    return Tracer(_exporter_class()(settings), sample_ratio=settings.sample_ratio)


def _exporter_class() -> Callable[[Traces], Exporter]:
    try:
        from daemon.otlp import OtlpExporter  # noqa: PLC0415 off, none of these modules is loaded
    except ImportError as e:
        raise SettingsInvalid(
            f"traces.enabled: the package {e.name or 'opentelemetry'} is not installed. Install the extra: "
            "pip install 'dealix-webhooks[otel]'; or set traces.enabled = false"
        ) from e
    return OtlpExporter


def _span_id() -> int:
    return random.getrandbits(64) or 1
