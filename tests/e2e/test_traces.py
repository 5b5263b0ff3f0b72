"""Traces from end to end: a daemon, its application, a receiver and a collector that sees what was sent to it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import sysconfig
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self

import httpx
import psycopg
import pytest
import trio

from daemon import clock
from tests.e2e.scene import AUTHORIZED, Scene
from tests.e2e.traffic import Receiver as ReceiverProgram
from tests.support.answers import status
from tests.support.collector import Collector, Seen, open_collector
from tests.support.daemon_process import ROOT, DaemonProcess, Installation, until
from tests.support.receiver import open_receiver
from tests.support.traceparents import new, span_of, trace_of

LIMIT_S: Final = 45.0
BASE: Final = "/api/v1/ecosystem"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with open_collector() as opened:
        yield opened


@pytest.fixture
def scene(migrated_database: str, receiver: ReceiverProgram) -> Scene:
    made = Scene(migrated_database, receiver)
    made.open()
    return made


def traced(endpoint: str, **more: str) -> dict[str, str]:
    """The environment of a daemon whose traces are on. It exports ten times a second."""
    return {
        "DEALIX_TRACES__ENABLED": "true",
        "DEALIX_TRACES__ENDPOINT": endpoint,
        "DEALIX_DELIVERY__RETRY_SCHEDULE_S": "0,0.3,3600",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    } | more


class Customer:
    """What a customer and the application do over HTTP."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self._client = httpx.AsyncClient(base_url=daemon.api + BASE, headers=AUTHORIZED, timeout=10, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def post(self, path: str, body: object, traceparent: str | None = None) -> dict[str, Any]:
        headers = {} if traceparent is None else {"traceparent": traceparent}
        answer = await self._client.post(path, json=body, headers=headers)
        assert answer.status_code in {201, 202}, answer.text
        return answer.json()

    async def subscribe(self, url: str, *, asks: bool) -> str:
        body = {"customer_id": "acme", "endpoint_url": url, "propagate_trace_context": asks}
        return (await self.post("/webhooks", body))["id"]

    async def emit(self, traceparent: str | None = None) -> str:
        return (await self.post("/events/emit", {"customer_id": "acme", "event_type": "deal.won"}, traceparent))[
            "event_id"
        ]


def emit_in_sql(url: str, traceparent: str | None) -> str:
    """As an application does it: its own transaction, its own trace."""
    with psycopg.connect(url) as application:
        if traceparent is not None:
            application.execute(f"SET LOCAL dealix.traceparent = '{traceparent}'".encode())
        row = application.execute("SELECT event_id FROM dealix.emit('acme', 'deal.won', '{}')").fetchone()
    assert row is not None
    return row[0]


async def trace_of_event(collector: Collector, event_id: str, attempts: int) -> tuple[Seen, list[Seen]]:
    """The fan-out of an event and its attempts, in their order, as soon as the collector has so many."""
    (fan_out,) = await collector.wait_for(lambda: collector.named("fan-out", event_id=event_id), 1)
    found = await collector.wait_for(lambda: collector.named("attempt", event_id=event_id), attempts)
    return fan_out, sorted(found, key=lambda one: (one.started_ns, one.id))


async def test_one_trace_holds_the_emit_over_http_the_fan_out_and_every_attempt(
    scene: Scene, installation: Installation, collector: Collector
) -> None:
    daemon = installation.start(scene.url, environ=traced(collector.endpoint))
    given = new()
    with trio.fail_after(LIMIT_S):
        async with open_receiver() as receiver, Customer(daemon) as customer:
            receiver.answer("/flaps", status(503), status(200))
            flaps = await customer.subscribe(receiver.url("/flaps"), asks=True)
            steady = await customer.subscribe(receiver.url("/steady?token=s3cr3t"), asks=False)
            event_id = await customer.emit(given)
            fan_out, attempts = await trace_of_event(collector, event_id, 3)
            (emit,) = await collector.wait_for(lambda: collector.named("emit", event_id=event_id), 1)
            sent = await receiver.wait_for(3)
    assert {one.trace for one in (emit, fan_out, *attempts)} == {trace_of(given)}
    assert (emit.parent, fan_out.parent) == (span_of(given), emit.id)
    assert [one.parent for one in attempts] == [fan_out.id] * 3
    assert len({one.id for one in (emit, fan_out, *attempts)}) == 5
    assert (emit.kind, fan_out.kind, {one.kind for one in attempts}) == ("server", "internal", {"client"})
    assert {one.service for one in collector.spans} == {"dealix-webhooks"}
    for one in (emit, fan_out, *attempts):
        assert 0 <= one.ended_ns - one.started_ns < 20e9
        assert abs(one.ended_ns / 1e9 - time.time()) < 60

    # What they tell.
    assert emit.attributes == {
        "http.request.method": "POST",
        "http.route": f"{BASE}/events/emit",
        "http.response.status_code": 202,
        "dealix.customer.id": "acme",
        "dealix.event.id": event_id,
        "dealix.event.type": "deal.won",
        "dealix.event.matched": 2,
    }
    assert fan_out.attributes == {
        "dealix.customer.id": "acme",
        "dealix.event.id": event_id,
        "dealix.event.matched": 2,
    }
    names = ("dealix.subscription.id", "dealix.attempt.number")
    told = {tuple(one.attributes[name] for name in names): one for one in attempts}
    assert set(told) == {(flaps, 1), (flaps, 2), (steady, 1)}
    failed, retried = told[flaps, 1], told[flaps, 2]
    assert (failed.error, retried.error, told[steady, 1].error) == ("", None, None)
    logged = scene.rows("SELECT id FROM dealix.attempts WHERE NOT success")
    assert failed.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 503,
        "server.address": "127.0.0.1",
        "server.port": receiver.port,
        "error.type": "503",
        "dealix.customer.id": "acme",
        "dealix.subscription.id": flaps,
        "dealix.event.id": event_id,
        "dealix.event.type": "deal.won",
        "dealix.attempt.id": logged[0][0],
        "dealix.attempt.number": 1,
        "dealix.attempt.outcome": "retry",
    }
    assert "error.type" not in retried.attributes
    assert "s3cr3t" not in str(collector.spans)

    # What the endpoints were sent.
    by_attempt = {r.headers["dealix-delivery-attempt"]: r for r in sent if r.path == "/flaps"}
    for number, span in (("1", failed), ("2", retried)):
        assert by_attempt[number].headers["traceparent"] == f"00-{trace_of(given)}-{span.id}-01"
    assert all("traceparent" not in r.headers for r in sent if r.path != "/flaps")
    assert daemon.stop() == 0


async def test_an_emit_in_sql_goes_on_with_the_applications_trace_or_begins_one(
    scene: Scene, installation: Installation, collector: Collector
) -> None:
    daemon = installation.start(scene.url, environ=traced(collector.endpoint))
    given = new()
    with trio.fail_after(LIMIT_S):
        async with open_receiver() as receiver, Customer(daemon) as customer:
            receiver.answer("/hook", status(200), status(500), status(200))
            await customer.subscribe(receiver.url("/hook"), asks=True)
            with_one = emit_in_sql(scene.url, given)
            fan_out, (attempt,) = await trace_of_event(collector, with_one, 1)
            assert (fan_out.trace, fan_out.parent) == (trace_of(given), span_of(given))
            assert (attempt.trace, attempt.parent) == (fan_out.trace, fan_out.id)
            without = emit_in_sql(scene.url, None)
            fan_out, (first, second) = await trace_of_event(collector, without, 2)
            assert fan_out.parent == ""
            assert fan_out.trace != trace_of(given)
            assert {(one.trace, one.parent) for one in (first, second)} == {(fan_out.trace, fan_out.id)}
            sent = await receiver.wait_for(3)
            assert [r.headers["traceparent"].split("-")[1:3] for r in sent] == [
                [one.trace, one.id] for one in (attempt, first, second)
            ]
    assert collector.named("emit") == []
    assert daemon.stop() == 0


async def test_a_batch_is_one_span_and_what_it_emitted_its_children(
    scene: Scene, installation: Installation, collector: Collector
) -> None:
    daemon = installation.start(scene.url, environ=traced(collector.endpoint))
    given = new()
    event = {"customer_id": "acme", "event_type": "deal.won"}
    with trio.fail_after(LIMIT_S):
        async with open_receiver() as receiver, Customer(daemon) as customer:
            await customer.subscribe(receiver.url("/hook"), asks=False)
            made = await customer.post("/events/emit/batch", {"events": [event] * 5}, given)
            (emit,) = await collector.wait_for(lambda: collector.named("emit"), 1)
            for one in made["events"]:
                fan_out, (attempt,) = await trace_of_event(collector, one["event_id"], 1)
                assert (fan_out.trace, fan_out.parent, attempt.parent) == (trace_of(given), emit.id, fan_out.id)
    assert (emit.parent, emit.attributes["dealix.event.count"]) == (span_of(given), 5)


async def test_a_refused_emit_is_a_span_without_an_error_and_a_malformed_header_begins_a_trace(
    scene: Scene, installation: Installation, collector: Collector
) -> None:
    daemon = installation.start(scene.url, environ=traced(collector.endpoint))
    with trio.fail_after(LIMIT_S):
        async with httpx.AsyncClient(base_url=daemon.api + BASE, headers=AUTHORIZED, trust_env=False) as client:
            body = {"customer_id": "acme", "event_type": "no.such"}
            for header in ("nonsense", new().replace("00-", "ff-", 1)):
                answer = await client.post("/events/emit", json=body, headers={"traceparent": header})
                assert answer.status_code == 400
        spans = await collector.wait_for(lambda: collector.named("emit"), 2)
    assert {(one.parent, one.error, one.attributes["http.response.status_code"]) for one in spans} == {("", None, 400)}
    assert len({one.trace for one in spans}) == 2


async def test_what_nobody_wanted_and_is_recovered_later_hangs_on_its_emit(
    scene: Scene, installation: Installation, collector: Collector
) -> None:
    daemon = installation.start(scene.url, environ=traced(collector.endpoint))
    with trio.fail_after(LIMIT_S):
        async with open_receiver() as receiver, Customer(daemon) as customer:
            event_id = await customer.emit()
            webhook_id = await customer.subscribe(receiver.url("/hook"), asks=True)
            since = clock.iso(clock.now() - timedelta(hours=1))
            await customer.post(f"/webhooks/{webhook_id}/recover", {"since": since, "status": "missed"})
            (sent,) = await receiver.wait_for(1)
            (attempt,) = await collector.wait_for(lambda: collector.named("attempt", event_id=event_id), 1)
            (emit,) = collector.named("emit", event_id=event_id)
    assert (attempt.trace, attempt.parent, emit.parent) == (emit.trace, emit.id, "")
    assert sent.headers["traceparent"] == f"00-{emit.trace}-{attempt.id}-03"  # a random trace id, and it says so
    assert collector.named("fan-out") == []


async def test_what_the_application_does_not_sample_is_sent_on_and_not_exported(
    scene: Scene, installation: Installation, collector: Collector
) -> None:
    daemon = installation.start(scene.url, environ=traced(collector.endpoint, DEALIX_TRACES__SAMPLE_RATIO="0"))
    unsampled, sampled = new().removesuffix("01") + "00", new()
    with trio.fail_after(LIMIT_S):
        async with open_receiver() as receiver, Customer(daemon) as customer:
            await customer.subscribe(receiver.url("/hook"), asks=True)
            for header in (unsampled, None, sampled):
                await customer.emit(header)
            sent = await receiver.wait_for(3)
            event_id = next(r for r in sent if trace_of(r.headers["traceparent"]) == trace_of(sampled)).headers[
                "dealix-event-id"
            ]
            await trace_of_event(collector, event_id, 1)
    flags = sorted(r.headers["traceparent"].split("-")[3] for r in sent)
    assert flags == ["00", "01", "02"]
    assert {one.trace for one in collector.spans} == {trace_of(sampled)}
    assert daemon.stop() == 0


def test_a_stop_brings_the_last_spans_to_the_collector(
    scene: Scene, installation: Installation, collector: Collector
) -> None:
    environ = traced(collector.endpoint, OTEL_BSP_SCHEDULE_DELAY="600000", OTEL_SERVICE_NAME="hooks", **HEADERS)
    daemon = installation.start(scene.url, environ=environ)
    scene.subscribe(daemon)
    scene.emit()
    scene.receiver.wait_for(1)
    until(lambda: scene.rows("SELECT id FROM dealix.attempts"), within_s=5, what="the attempt's row")
    assert collector.requests == 0
    assert daemon.stop() == 0
    assert {one.name for one in collector.spans} == {"fan-out", "attempt"}
    assert {one.service for one in collector.spans} == {"hooks"}
    assert collector.headers[0]["x-tenant"] == "us"


HEADERS: Final = {"OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=us"}


# ── a collector in trouble ───────────────────────────────────────────────────────────────────────────────────────────


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_a_dead_collector_harms_nothing(scene: Scene, installation: Installation) -> None:
    daemon = installation.start(scene.url, environ=traced(f"http://127.0.0.1:{closed_port()}/v1/traces"))
    scene.subscribe(daemon)
    for _ in range(3):
        scene.emit()
    scene.receiver.wait_for(3)
    daemon.wait_for("traces.not_exported", within_s=30)
    scene.emit()
    scene.receiver.wait_for(4, within_s=3)
    assert httpx.get(f"{daemon.api}/readyz").status_code == 200
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 8
    assert len(daemon.lines("traces.not_exported")) == 1
    assert daemon.lines("library.said") == []


def test_a_collector_that_never_answers_holds_up_neither_deliveries_nor_the_stop(
    scene: Scene, installation: Installation
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        daemon = installation.start(scene.url, environ=traced(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"))
        scene.subscribe(daemon)
        for n in range(1, 6):
            scene.emit()
            scene.receiver.wait_for(n, within_s=3)
        connection, _ = silent.accept()
        with connection:
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 8
    assert [line["event"] for line in daemon.lines("traces.lost")] == ["traces.lost"]


def test_a_collector_that_comes_back_gets_spans_again_and_the_log_says_so_once(
    scene: Scene, installation: Installation, collector: Collector
) -> None:
    collector.refuses = True
    environ = traced(collector.endpoint, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    daemon = installation.start(scene.url, environ=environ)
    scene.subscribe(daemon)
    scene.emit()
    daemon.wait_for("traces.not_exported", within_s=10)
    collector.refuses = False
    event_id = scene.emit()
    until(lambda: collector.named("attempt", event_id=event_id), within_s=10, what="the span of a later attempt")
    assert daemon.wait_for("traces.exported_again")["lost"] >= 1
    assert daemon.stop() == 0


def test_the_embedded_postgres_comes_back_beside_the_exporters_thread(
    installation: Installation, collector: Collector
) -> None:
    daemon = installation.start(environ=traced(collector.endpoint))
    (cluster,) = (one for one in installation.data_dir.glob("pg*") if one.is_dir())
    os.kill(int((cluster / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    daemon.wait_for("embedded_postgres.restarted", within_s=20)
    until(lambda: httpx.get(f"{daemon.api}/readyz").status_code == 200, within_s=20, what="a daemon that is ready")
    assert daemon.stop() == 0


# ── without the extra ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bare(installation: Installation, tmp_path: Path) -> Installation:
    """The same programs, with everything installed but the extra's own packages."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for one in Path(sysconfig.get_path("purelib")).iterdir():
        if not one.name.startswith(("opentelemetry", "__editable__", "_dealix", "google", "protobuf")):
            (packages / one.name).symlink_to(one)
    interpreter = getattr(sys, "_base_executable")  # noqa: B009 - the one without this venv
    installation.command = ("env", f"PYTHONPATH={packages}:{ROOT}", interpreter, "-s", "-m", "daemon", "serve")
    return installation


def test_switched_on_without_the_extra_it_does_not_start_and_says_what_to_install(
    bare: Installation, migrated_database: str
) -> None:
    daemon = bare.start(migrated_database, environ=traced("http://127.0.0.1:4318/v1/traces"), ready=False)
    assert daemon.wait() == 78
    assert "traces.enabled: " in daemon.text()
    assert "pip install 'dealix-webhooks[otel]'" in daemon.text()
    assert "Traceback" not in daemon.text()


def test_switched_off_it_needs_none_of_it_and_hands_the_header_on(bare: Installation, scene: Scene) -> None:
    daemon = bare.start(scene.url)
    scene.subscribe(daemon)
    given = new()
    emit_in_sql(scene.url, given)
    scene.receiver.wait_for(1)
    assert scene.rows("SELECT traceparent FROM dealix.events") == [(given,)]
    assert "opentelemetry" not in Path(f"/proc/{daemon.pid}/maps").read_text()
    assert daemon.stop() == 0


def test_check_says_so_too(installation: Installation, migrated_database: str) -> None:
    ended = installation.run("check", database_url=migrated_database, environ=traced("http://127.0.0.1:4318"))
    assert ended.code == 0, ended.err
    refused = installation.run("check", database_url=migrated_database, environ=traced("collector:4318"))
    assert refused.code == 78
    assert "traces.endpoint (DEALIX_TRACES__ENDPOINT): should be a URL such as http" in refused.err
