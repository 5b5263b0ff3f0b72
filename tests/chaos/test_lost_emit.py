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
WANTED, TRIES = 1, 30
"""One commit without an answer is enough; a busy machine does not hit that moment each time."""
MOST_TRIPS: Final = 4
"""Before the emit's own statement the API asks where the connection leads, and for the key."""
DELAY_S: Final = 0.12


@pytest.fixture
def proxy(own_server: OwnServer, tmp_path: Path) -> Iterator[Proxy]:
    with open_proxy(own_server, tmp_path) as opened:
        yield opened


@pytest.mark.timeout(120)
@pytest.mark.parametrize("own_cluster", ["18"], indirect=True)
def test_an_emit_whose_commit_was_not_answered_is_repeated_into_the_same_event(
    own_server: OwnServer, proxy: Proxy, installation: Installation, receiver: Receiver
) -> None:
    scene = Scene(fresh_database(own_server.url), receiver)
    # As with a pooler: each statement is one round trip, never prepared before.
    daemon = installation.start(proxy.url(scene.url), environ={"DEALIX_DATABASE__DIRECT_URL": scene.url})
    scene.open()
    scene.subscribe(daemon)
    unanswered = trips = 0
    tried: list[str] = []
    with httpx.Client(base_url=daemon.api, headers=AUTHORIZED, timeout=10) as client:
        while unanswered < WANTED and len(tried) < TRIES:
            event = {"customer_id": "acme", "event_type": "deal.won", "payload": {}, "event_id": f"order-{len(tried)}"}
            tried.append(f"order-{len(tried)}")
            client.get(f"{EVENTS}/nothing?customer_id=acme")  # so that a connection is there
            answer = emit_into_the_void(client, proxy, event, after_s=DELAY_S * (1.5 + 2 * trips))
            if scene.rows("SELECT 1 FROM dealix.events WHERE id = %s", [tried[-1]]) and answer.status_code != 202:
                unanswered += 1
                assert (answer.status_code, answer.json()["code"]) == (503, "outcome_unknown")
            else:
                trips = (trips + 1) % MOST_TRIPS
            again = client.post(f"{EVENTS}/emit", json=event)
            assert (again.status_code, again.json()["event_id"], again.json()["matched"]) == (202, tried[-1], 1)
    assert unanswered == WANTED, "no COMMIT lost its answer: the test shows nothing"
    until(lambda: len(receiver.receipts()) >= len(tried), within_s=10, what="their deliveries")
    assert Counter(event_id for (event_id,) in scene.rows("SELECT id FROM dealix.events")) == Counter(tried)
    assert Counter(r.event_id for r in receiver.receipts()) == Counter(tried)
    assert daemon.stop() == 0


def emit_into_the_void(
    client: httpx.Client, proxy: Proxy, event: Mapping[str, object], *, after_s: float
) -> httpx.Response:
    """Emit over a slow way to the database; the first answer to what the API asks after `after_s` is dropped."""
    proxy.tell("delay", str(DELAY_S))
    with ThreadPoolExecutor(1) as other:
        answer = other.submit(client.post, f"{EVENTS}/emit", json=event)
        time.sleep(after_s)
        proxy.tell("lose", "dealix api", "1")
        said = answer.result()
    proxy.tell("lose", "dealix api", "0")
    proxy.tell("pass")
    return said
