"""What the cases share beside tests/e2e: a proxy before Postgres, and where the figures go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.figures import enter
from tests.chaos.proxy import Proxy, open_proxy
from tests.support.own_server import OwnServer

__all__ = ["enter"]


@pytest.fixture
def proxy(own_server: OwnServer, tmp_path: Path) -> Iterator[Proxy]:
    """A proxy before `own_server`."""
    with open_proxy(own_server, tmp_path) as opened:
        yield opened
