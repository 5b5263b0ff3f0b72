"""The answer to an emit's COMMIT is lost: the caller hears that nobody knows, asks again, and there is one event."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.chaos.proxy import Proxy, open_proxy
from tests.e2e.scene import AUTHORIZED, Scene
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import Installation, until
from tests.support.own_server import OwnServer
from tests.support.postgres import fresh_database

EVENTS: Final = "/api/v1/ecosystem/events"
ROUNDS: Final = 3
DELAY_S: Final = 0.25


@pytest.fixture
def proxy(own_server: OwnServer, tmp_path: Path) -> Iterator[Proxy]:
    with open_proxy(own_server, tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("own_cluster", ["18"], indirect=True)
def test_an_emit_whose_commit_was_not_answered_is_repeated_into_the_same_event(
    own_server: OwnServer, proxy: Proxy, installation: Installation, receiver: Receiver
) -> None:
    scene = Scene(fresh_database(own_server.url), receiver)
    daemon = installation.start(proxy.url(scene.url), environ={"DEALIX_DATABASE__DIRECT_URL": scene.url})
    scene.open()
    scene.subscribe(daemon)
    with httpx.Client(base_url=daemon.api, headers=AUTHORIZED, timeout=10) as client:
        for n in range(ROUNDS):
            event = {"customer_id": "acme", "event_type": "deal.won", "payload": {"n": n}, "event_id": f"order-{n}"}
            assert client.get(f"{EVENTS}/nothing?customer_id=acme").status_code == 404  # a connection is there
            answer = emit_into_the_void(client, proxy, event)
            assert (answer.status_code, answer.json()["code"]) == (503, "outcome_unknown")
            assert scene.rows("SELECT count(*) FROM dealix.events WHERE id = %s", [event["event_id"]]) == [(1,)]
            again = client.post(f"{EVENTS}/emit", json=event)
            assert (again.status_code, again.json()["event_id"], again.json()["matched"]) == (202, f"order-{n}", 1)
    until(lambda: len(receiver.receipts()) >= ROUNDS, within_s=10, what="their deliveries")
    once = Counter(f"order-{n}" for n in range(ROUNDS))
    assert Counter(event_id for (event_id,) in scene.rows("SELECT id FROM dealix.events")) == once
    assert Counter(r.event_id for r in receiver.receipts()) == once
    assert daemon.stop() == 0


def emit_into_the_void(client: httpx.Client, proxy: Proxy, event: Mapping[str, object]) -> httpx.Response:
    """The look-up of the key is answered, late; the emit after it commits, and its answer is dropped."""
    proxy.tell("delay", str(DELAY_S))
    with ThreadPoolExecutor(1) as other:
        answer = other.submit(client.post, f"{EVENTS}/emit", json=event)
        time.sleep(1.5 * DELAY_S)  # the server has answered the look-up by now, and was not asked for the emit
        proxy.tell("lose", "dealix api", "1")
        said = answer.result()
    proxy.tell("pass")
    return said
