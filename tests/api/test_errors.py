"""A bug in the API: what the caller learns of it, and what the log keeps."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from config.settings import Log
from daemon import log
from tests.support.api import Served


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """The program's own log, as JSON."""
    stream = io.StringIO()
    log.configure(Log(format="json", level="debug"), stream)
    yield stream
    structlog.reset_defaults()


async def test_a_bug_is_a_500_with_a_number_that_leads_to_its_traceback(api: Served, logged: io.StringIO) -> None:
    await api.run("ALTER TABLE dealix.daily_stats RENAME TO elsewhere")  # a fault that no code of ours expects
    answer = await api.acme.get("/stats", period_days=3)
    assert answer.status_code == 500
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == "internal"
    for leak in ("daily_stats", "SELECT", "psycopg", "Traceback"):
        assert leak not in answer.text
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    (failed,) = [line for line in lines if line["event"] == "request.failed"]
    assert failed["incident"] in problem["detail"]
    assert failed["route"] == "/api/v1/ecosystem/stats"
    assert "UndefinedTable" in failed["exception"]
    assert api.keys["acme"] not in logged.getvalue()
    assert (await api.acme.get("/webhooks")).status_code == 200


async def test_each_request_leaves_one_line_at_debug(api: Served, logged: io.StringIO) -> None:
    made = await api.acme.subscribe()
    await api.acme.get(f"/webhooks/{made['id']}")
    await api.client.get("/nothing")
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    answered = [line for line in lines if line["event"] == "request.answered"]
    assert [(line["method"], line["route"], line["status"]) for line in answered] == [
        ("POST", "/api/v1/ecosystem/webhooks", 201),
        ("GET", "/api/v1/ecosystem/webhooks/<subscription_id>", 200),
        ("GET", None, 404),
    ]
    assert all(line["level"] == "debug" and line["duration_ms"] >= 0 for line in answered)
    assert [bool(line["key_id"]) for line in answered] == [True, True, False]
    assert made["secret"] not in logged.getvalue()
