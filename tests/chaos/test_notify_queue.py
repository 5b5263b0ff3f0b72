"""The server's NOTIFY queue is full, by the fault of another application: emits commit, and everything arrives."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import psycopg
import pytest

from tests.e2e import oracle
from tests.e2e.scene import AUTHORIZED, Scene
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import Installation, until
from tests.support.own_server import OwnServer
from tests.support.postgres import fresh_database

SMALL: Final = "max_notify_queue_pages=64"
BEATS_S: Final = 5.0
"""Longer than a daemon bears not to hear its own heartbeat."""
SUBSCRIPTIONS: Final = "/api/v1/ecosystem/webhooks"


@pytest.fixture
def server() -> Iterator[OwnServer]:
    with tempfile.TemporaryDirectory(prefix="dealix-own-") as home:
        made = OwnServer(Path(home), None)
        made.start(SMALL)
        yield made
        made.kill()


@contextmanager
def full_queue(url: str) -> Generator[None]:
    """Somebody LISTENs and stays in a transaction, while others go on sending."""
    with psycopg.connect(url, autocommit=True) as listener, psycopg.connect(url, autocommit=True) as sender:
        listener.execute("LISTEN clogged")
        listener.execute("BEGIN")
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            while True:
                sender.execute("SELECT pg_notify('clogged', repeat('x', 7000))")
        yield


@pytest.mark.timeout(90)
def test_a_full_notify_queue_fails_no_emit_and_stops_no_delivery(
    server: OwnServer, installation: Installation, receiver: Receiver
) -> None:
    scene = Scene(fresh_database(server.url), receiver)
    daemon = installation.start(scene.url)
    scene.open()
    subscribed = scene.subscribe(daemon)
    with full_queue(server.url):
        for _ in range(5):
            scene.emit()
        oracle.wait_until_arrived(scene, within_s=5)
        answer = httpx.patch(
            f"{daemon.api}{SUBSCRIPTIONS}/{subscribed.id}", json={"description": "mine"}, headers=AUTHORIZED
        )
        assert answer.status_code == 200
        time.sleep(BEATS_S)
        assert daemon.lines("ownership.lost") == []
        scene.emit()
        oracle.wait_until_arrived(scene, within_s=5)
        # One that starts meanwhile says so at once; others within a minute.
        second = installation.start(scene.url)
        warned = second.wait_for("notify_queue.filling", within_s=5)
        assert warned["usage"] > 0.9
    until(lambda: scene.rows("SELECT pg_notification_queue_usage()") == [(0.0,)], within_s=10, what="an empty queue")
    scene.emit()
    assert oracle.judge(scene).duplicates == 0
    assert second.stop() == 0
    assert daemon.stop() == 0
