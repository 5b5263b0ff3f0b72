"""A collector for tests: a real server on loopback that takes OTLP over HTTP, decodes it, and remembers the spans."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from typing_extensions import override

PATH: Final = "/v1/traces"


@dataclass(frozen=True, slots=True)
class Seen:
    """A span as it arrived; ids in hex, `parent` "" for none, `error` its status' message, None without an error."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, str | int]
    error: str | None
    started_ns: int
    ended_ns: int
    service: str


class Collector:
    """`spans` only grows. While `refuses`, exports are answered with 503."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}{PATH}"
        self.spans: list[Seen] = []
        self.requests = 0
        self.headers: list[dict[str, str]] = []
        self.refuses = False

    def take(self, body: bytes, headers: dict[str, str]) -> bool:
        """One export."""
        self.requests += 1
        self.headers.append(headers)
        if self.refuses:
            return False
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = str(_values(resource.resource.attributes).get("service.name", ""))
            self.spans += [_seen(span, service) for scope in resource.scope_spans for span in scope.spans]
        return True

    def named(self, name: str, **attributes: str | int) -> list[Seen]:
        """Spans of a name, with these attributes: `event_id` is `dealix.event.id`, and so on."""
        wanted = {_ATTRIBUTES[key]: value for key, value in attributes.items()}
        return [one for one in list(self.spans) if one.name == name and wanted.items() <= one.attributes.items()]

    async def wait_for(self, found: Callable[[], list[Seen]], count: int, *, within_s: float = 10.0) -> list[Seen]:
        """What `found` finds, as soon as these are `count`."""
        with trio.move_on_after(within_s):
            while len(found()) < count:
                await trio.sleep(0.02)
        spans = found()
        assert len(spans) == count, (spans, self.spans)
        return spans

    def wait_for_requests(self, count: int, *, within_s: float = 15.0) -> None:
        ends_at = time.monotonic() + within_s
        while self.requests < count:
            assert time.monotonic() < ends_at, f"{self.requests} exports, not {count}"
            time.sleep(0.02)


_ATTRIBUTES: Final = {
    "event_id": "dealix.event.id",
    "subscription_id": "dealix.subscription.id",
    "attempt": "dealix.attempt.number",
}


def _values(attributes: Iterable[KeyValue]) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for one in attributes:
        kind = one.value.WhichOneof("value")
        assert kind in {"string_value", "int_value"}, one
        found[one.key] = one.value.string_value if kind == "string_value" else one.value.int_value
    return found


def _seen(span: Span, service: str) -> Seen:
    return Seen(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        attributes=_values(span.attributes),
        error=span.status.message if span.status.code == Status.STATUS_CODE_ERROR else None,
        started_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        service=service,
    )


@contextmanager
def open_collector() -> Generator[Collector]:
    """A collector on a free port, until the end of the block. It serves from threads of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_right = self.path == PATH and self.headers["Content-Type"] == "application/x-protobuf"
            status = 400
            if is_right:
                taken = collector.take(body, {name.lower(): value for name, value in self.headers.items()})
                status = 200 if taken else 503
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        @override
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        collector = Collector(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
