"""Commands on the embedded database: beside the daemon that runs it, and without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.request import ProxyHandler, Request, build_opener

import psycopg
import pytest

from tests.cli.conftest import Dealix
from tests.support.daemon_process import Installation

OPENER: Final = build_opener(ProxyHandler({}))


@pytest.fixture
def installation(tmp_path: Path, bare_environment: pytest.MonkeyPatch) -> Iterator[Installation]:
    """An installation whose commands, too, find its data and its key."""
    made = Installation(tmp_path)
    assert made.sealing_key is not None
    bare_environment.setenv("DEALIX_DATA_DIR", str(made.data_dir))
    bare_environment.setenv("DEALIX_SEALING_KEY", made.sealing_key)
    yield made
    made.end()


def keys_seen_by(api: str, key: str) -> int:
    request = Request(f"{api}/api/v1/ecosystem/webhooks?customer_id=acme", headers={"Authorization": f"Bearer {key}"})
    with OPENER.open(request, timeout=10) as answer:
        return int(json.load(answer)["count"])


@pytest.mark.timeout(120)
def test_commands_work_beside_a_running_daemon_and_it_goes_on(installation: Installation, dealix: Dealix) -> None:
    daemon = installation.start()
    key = dealix("keys", "create", "--customer", "acme").out.strip()
    assert keys_seen_by(daemon.api, key) == 0
    emitted = dealix("emit", "--customer", "acme", "--type", "deal.won", "--data", '{"n": 1}')
    assert emitted.code == 0
    with psycopg.connect(dealix("db-url").out.strip()) as db:
        assert db.execute("SELECT id FROM dealix.events").fetchall() == [(emitted.out.split()[0],)]
    assert dealix("check").code == 0
    assert "unchanged" in dealix("subscriptions", "import", "-", stdin="").out
    assert dealix("migrate").code == 0
    assert daemon.running()
    assert daemon.stop() == 0


@pytest.mark.timeout(120)
def test_without_a_daemon_a_command_starts_the_database_for_itself_and_leaves_it_to_the_next(
    installation: Installation, dealix: Dealix
) -> None:
    key = dealix("keys", "create", "--customer", "acme").out.strip()  # on a machine where no daemon ever ran
    assert dealix("db-url").code == 1
    assert dealix("check").code == 0
    daemon = installation.start()
    assert keys_seen_by(daemon.api, key) == 0
    daemon.stop()
    listed = dealix("keys", "list")
    assert listed.out.count("customer acme") == 1
    assert key not in listed.out
