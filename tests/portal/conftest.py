"""Fixtures of the pages' tests: the API's own, and a browser of the simplest kind."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import trio

from tests.support.api import Served, open_api
from tests.support.visitor import Visitor, open_visitor


@pytest.fixture
async def api(migrated_database: str) -> AsyncGenerator[Served]:
    """The API and its pages without anybody who delivers."""
    with trio.fail_after(45):
        async with open_api(migrated_database) as served:
            yield served


@pytest.fixture
async def working_api(migrated_database: str) -> AsyncGenerator[Served]:
    """The same with the engine at work behind it."""
    with trio.fail_after(45):
        async with open_api(migrated_database, working=True, delivery={"timeout_s": 2}) as served:
            yield served


@pytest.fixture
async def acme(api: Served) -> AsyncGenerator[Visitor]:
    """A browser in which acme's key was entered."""
    async with open_visitor(api, "acme") as visitor:
        yield visitor
