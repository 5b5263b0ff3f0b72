"""Spans to a collector, by OTLP over HTTP: the one file that knows OpenTelemetry, and is loaded only with traces on.

The SDK's batch processor has a bounded queue (2,048 spans, then the oldest go) and a thread of its own, which alone
waits for the collector. What is no setting of ours it takes from the usual variables: OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_BSP_….
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import trio
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from typing_extensions import override

from config.settings import Traces
from daemon.errors import SettingsInvalid
from daemon.log import get
from daemon.policy.trace_context import TraceContext
from daemon.span import Kind, Span

log = get("traces")

SERVICE_NAME: Final = "dealix-webhooks"
CLOSE_S: Final = 3.0
"""At a stop: how long the collector may take for what is left."""
_KINDS: Final[dict[Kind, SpanKind]] = {
    "server": SpanKind.SERVER,
    "internal": SpanKind.INTERNAL,
    "client": SpanKind.CLIENT,
}
_SCOPE: Final = InstrumentationScope("dealix")
_UNSET: Final = Status(StatusCode.UNSET)


class OtlpExporter:
    """Of one daemon. Raises SettingsInvalid for an OTEL_… variable that the SDK does not take."""

    def __init__(self, settings: Traces) -> None:
        # What it says of each batch and each try is said once for an outage, by _Telling.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        try:
            named = OTELResourceDetector().detect().attributes
            self._resource = Resource.create({"service.name": SERVICE_NAME, **named})
            self._processor = BatchSpanProcessor(_Telling(OTLPSpanExporter(endpoint=settings.endpoint)))
        except ValueError as e:
            raise SettingsInvalid(f"traces: a variable OTEL_… of the environment is not understood: {e}") from e

    def export(self, span: Span) -> None:
        """Put a span into the queue."""
        self._processor.on_end(
            ReadableSpan(
                span.name,
                context=_context(span.context, is_remote=False),
                parent=None if span.parent is None else _context(span.parent, is_remote=True),
                resource=self._resource,
                attributes=span.facts,
                kind=_KINDS[span.kind],
                instrumentation_scope=_SCOPE,
                status=_UNSET if span.error is None else Status(StatusCode.ERROR, span.error or None),
                start_time=span.started_ns,
                end_time=span.ended_ns,
            )
        )

    async def aclose(self) -> None:
        """Send what is in the queue, for `CLOSE_S` at most; what a collector has not taken by then is lost."""
        with trio.move_on_after(CLOSE_S, shield=True) as scope:
            await trio.to_thread.run_sync(self._flush, abandon_on_cancel=True)
        if scope.cancelled_caught:
            log.warning("traces.lost", reason=f"the collector did not take them within {CLOSE_S:g} s")

    def _flush(self) -> None:
        self._processor.force_flush()
        self._processor.shutdown()


class _Telling(SpanExporter):
    """Another exporter, and a line in the log when it begins to fail and when it is well again. In the SDK's thread."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._lost = 0

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._lost:
                log.warning("traces.not_exported", note="deliveries go on; spans are lost until the collector answers")
            self._lost += len(spans)
        elif self._lost:
            log.info("traces.exported_again", lost=self._lost)
            self._lost = 0
        return result

    @override
    def shutdown(self) -> None:
        self._inner.shutdown()

    @override
    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


def _context(place: TraceContext, *, is_remote: bool) -> SpanContext:
    return SpanContext(place.trace_id, place.span_id, is_remote, TraceFlags(place.flags))
