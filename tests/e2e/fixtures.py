"""What a test of whole processes begins with: an installation that daemons are started from, and a receiver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.traffic import Receiver, open_receiver
from tests.support.daemon_process import Installation


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """Starts daemons. What they logged must be free of complaints at the end."""
    installed = Installation(tmp_path)
    yield installed
    installed.end()
    assert installed.complaints() == []


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with open_receiver(tmp_path) as opened:
        yield opened
