"""A network that loses every packet for some seconds: deliveries go on soon after it, whatever TCP waits for."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.figures import Enter
from tests.chaos.own_network import Network, ServerApart, own_network
from tests.chaos.stage import Stage
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import Installation
from tests.support.postgres import fresh_database

SILENCES_S: Final = (3.2, 6.5, 8.0, 12.0)
"""TCP repeats what it sent 0.2, 0.6, 1.4, 3.0, 6.2 and 12.6 s later."""
RECOVERED_S: Final = 4.0
LEASE_S: Final = 60.0
PER_SECOND: Final = 100


@pytest.fixture
def network() -> Iterator[Network]:
    with own_network() as made:
        yield made


@pytest.fixture
def server(network: Network) -> Iterator[ServerApart]:
    with tempfile.TemporaryDirectory(prefix="dealix-own-") as home:
        made = ServerApart(Path(home), network)
        made.start("listen_addresses=*")
        yield made
        made.kill()


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_network_that_loses_every_packet(
    network: Network, server: ServerApart, installation: Installation, receiver: Receiver, tmp_path: Path, enter: Enter
) -> None:
    environ = {"DEALIX_DATABASE__POOL_SIZE": 4}
    stage = Stage.on(fresh_database(server.url), installation, receiver, tmp_path, environ)
    daemon = stage.start(network.url(stage.scene.url))
    stage.invite(daemon, sick=False)
    recoveries: list[float] = []
    with stage.load(PER_SECOND) as emitter:
        for silent_s in SILENCES_S:
            emitter.go_on(200)
            network.lose()
            time.sleep(silent_s)  # the fault's own length
            network.forward()
            recoveries.append(stage.resumed_after(emitter, time.monotonic(), within_s=60))
        emitter.go_on(100)
    verdict = stage.judge(emitter, within_s=LEASE_S + 60)
    said = ", ".join(f"{silent_s:g}" for silent_s in SILENCES_S)
    enter("C8", f"every packet lost for {said} s", len(SILENCES_S), verdict, emitter, recovery_s=max(recoveries))
    assert max(recoveries) < RECOVERED_S, recoveries
    assert verdict.duplicates == 0
    assert daemon.running()
    assert daemon.stop() == 0
