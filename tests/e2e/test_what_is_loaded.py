"""What the daemon's process has in memory: nothing that only commands, or only few installations, have a use for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.support.daemon_process import Installation

FOR_COMMANDS: Final = {"daemon.demo", "daemon.cli.commands", "httpx"}
FOR_TRACES: Final = {"opentelemetry"}
FOR_SCHEMAS: Final = {"api.json_schema", "jsonschema", "referencing", "rpds"}


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """As elsewhere, but the interpreter tells of each import on standard error, where else only log lines may stand."""
    installed = Installation(tmp_path)
    yield installed
    installed.end()


def test_a_daemon_that_serves_api_portal_and_docs_has_loaded_nothing_of_the_commands_and_no_schema_library(
    migrated_database: str, installation: Installation
) -> None:
    daemon = installation.start(migrated_database, environ={"PYTHONPROFILEIMPORTTIME": 1})
    for path in ("/readyz", "/openapi.json", "/docs", "/portal/login", "/ops/login"):
        assert httpx.get(f"{daemon.api}{path}").status_code == 200, path
    assert daemon.stop() == 0
    loaded = set(re.findall(r"^import time:.*\| +(\S+)$", daemon.text(), re.MULTILINE))
    assert {"daemon.run", "api.app", "psycopg", "quart"} <= loaded
    assert loaded & (FOR_COMMANDS | FOR_SCHEMAS | FOR_TRACES) == set()
