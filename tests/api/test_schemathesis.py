"""Schemathesis against the running API: no 5xx, and no answer that the document does not name.

Runs for FUZZ_S seconds where that is set (make fuzz), for two minutes in CI, and for a short while otherwise.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.support.api import Served, open_api
from tests.support.log import Row, write

SECONDS: Final = int(os.environ.get("FUZZ_S", "120" if "CI" in os.environ else "20"))
OVERHEAD_S: Final = 60
CHECKS: Final = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "unsupported_method", "missing_required_header", "ignored_auth",
    "negative_data_rejection",
)  # fmt: skip
"""Not allow_header_conformance: GET /events/emit is the event whose own id is "emit", which the document cannot say."""

CONFIGURATION: Final = """
continue-on-failure = true
request-timeout = 20.0
[dictionaries]
customers = {{ values = ["acme", "globex"] }}
subscriptions = {{ values = {subscriptions} }}
attempts = {{ values = {attempts} }}
events = {{ values = {events} }}
recoveries = {{ values = {recoveries} }}
types = {{ values = ["deal.won", "lead.created"] }}
urls = {{ values = ["http://127.0.0.1:9/", "https://hooks.example.com/x"] }}
[parameters]
"path.subscription_id" = {{ dictionary = "subscriptions", probability = 0.7 }}
"path.attempt_id" = {{ dictionary = "attempts", probability = 0.7 }}
"path.event_id" = {{ dictionary = "events", probability = 0.7 }}
"path.recovery_id" = {{ dictionary = "recoveries", probability = 0.7 }}
"query.customer_id" = {{ dictionary = "customers", probability = 0.7 }}
"query.subscription_id" = {{ dictionary = "subscriptions", probability = 0.5 }}
"query.event_id" = {{ dictionary = "events", probability = 0.5 }}
"body.customer_id" = {{ dictionary = "customers", probability = 0.7 }}
"body.event_type" = {{ dictionary = "types", probability = 0.7 }}
"path.event_type" = {{ dictionary = "types", probability = 0.7 }}
"body.endpoint_url" = {{ dictionary = "urls", probability = 0.7 }}
[[operations]]
include-name = "POST /api/v1/ecosystem/events/emit"
parameters = {{ "query.wait_s" = 1 }}
[[operations]]
include-name = "GET /api/v1/ecosystem/events/stream"
parameters = {{ "query.max_s" = 1 }}
"""
"""Ids that exist, so that not every request ends at a 404; and no waiting for half a minute."""


async def seed(served: Served) -> dict[str, list[str]]:
    """Subscriptions, events and attempts to be found."""
    subscriptions = [
        (await served.acme.subscribe(events=events))["id"] for events in ([], ["deal.won"], []) for _ in "ab"
    ]
    events: list[str] = []
    for n in range(4):
        event = {"customer_id": "acme", "event_type": "deal.won"} | ({"event_id": f"order-{n}"} if n % 2 else {})
        events.append((await served.ops.post("/events/emit", event)).json()["event_id"])
    async with served.pool.connection(10) as conn:
        attempts = await write(conn, [Row(s, e, outcome="failed") for s in subscriptions for e in events])
    since = {"since": "2026-01-31T08:00:00Z", "status": "all"}
    begun = [(await served.acme.post(f"/webhooks/{one}/recover", since)).json()["id"] for one in subscriptions[:2]]
    return {"subscriptions": subscriptions, "events": events, "attempts": attempts, "recoveries": begun}


@pytest.mark.fuzz
@pytest.mark.timeout(SECONDS + OVERHEAD_S + 30)
@pytest.mark.parametrize("who", ["ops", "acme"])
async def test_schemathesis_finds_no_5xx_and_nothing_undocumented(
    migrated_database: str, tmp_path: Path, who: str
) -> None:
    with trio.fail_after(SECONDS + OVERHEAD_S):
        async with open_api(migrated_database, working=True, delivery={"timeout_s": 1}) as served:
            found = await seed(served)
            configuration = tmp_path / "schemathesis.toml"
            configuration.write_text(CONFIGURATION.format(**{name: repr(ids) for name, ids in found.items()}))
            ran = await schemathesis(served, configuration, served.keys[who])
            assert ran.returncode == 0, ran.stdout.decode()[-8000:]
            assert (await served.client.get("/readyz")).status_code == 200


async def schemathesis(served: Served, configuration: Path, key: str) -> subprocess.CompletedProcess[bytes]:
    command = [
        *(Path(sys.executable).with_name("st"), "--config-file", configuration, "run", f"{served.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {key}", "--checks", ",".join(CHECKS), "--max-time", str(SECONDS // 2)),
        # One worker: CPython 3.11 miscounts the depth of ast.parse in several threads, and Hypothesis parses lambdas.
        *("--workers", "1", "--generation-database", "none", "--no-color", "--warnings", "off"),
    ]
    return await trio.run_process(
        [str(word) for word in command], capture_stdout=True, capture_stderr=True, check=False, cwd=configuration.parent
    )
