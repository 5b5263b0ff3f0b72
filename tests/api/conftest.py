"""Fixtures of the API's tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import trio

from tests.support.api import Served, open_api


@pytest.fixture
async def api(migrated_database: str) -> AsyncGenerator[Served]:
    """The API without anybody who delivers."""
    with trio.fail_after(45):
        async with open_api(migrated_database) as served:
            yield served


@pytest.fixture
async def working_api(migrated_database: str) -> AsyncGenerator[Served]:
    """The API with the engine at work behind it."""
    with trio.fail_after(45):
        async with open_api(migrated_database, working=True, delivery={"timeout_s": 2}) as served:
            yield served
