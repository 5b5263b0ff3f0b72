"""A daemon as Prometheus meets it: on the address that its operator gave for that."""

from __future__ import annotations

import socket

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.scene import AUTHORIZED, Scene
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import Installation, until


@pytest.fixture
def scene(migrated_database: str, receiver: Receiver) -> Scene:
    made = Scene(migrated_database, receiver)
    made.open()
    return made


def delivered(text: str) -> float:
    """Attempts that delivered, so far."""
    (found,) = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if (sample.name, sample.labels) == ("dealix_attempts_total", {"outcome": "delivered"})
    ]
    return found


def test_a_scrape_needs_no_key_on_metrics_bind_and_counts_what_is_delivered(
    scene: Scene, installation: Installation
) -> None:
    daemon = installation.start(scene.url, environ={"DEALIX_API__METRICS_BIND": "127.0.0.1:0"})
    url = daemon.wait_for("metrics.served")["url"]
    assert delivered(httpx.get(url).text) == 0
    scene.subscribe(daemon)
    for _ in range(3):
        scene.emit()
    scene.receiver.wait_for(3)
    until(lambda: delivered(httpx.get(url).text) == 3, within_s=5, what="three deliveries are counted")
    assert httpx.get(f"{daemon.api}/metrics").status_code == 401
    assert delivered(httpx.get(f"{daemon.api}/metrics", headers=AUTHORIZED).text) == 3
    assert daemon.stop() == 0


def test_an_address_that_is_taken_ends_the_start_by_its_name(scene: Scene, installation: Installation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = installation.start(scene.url, environ={"DEALIX_API__METRICS_BIND": bind}, ready=False)
        assert daemon.wait() == 78
        assert f"api.metrics_bind: cannot listen on {bind}" in daemon.text()
