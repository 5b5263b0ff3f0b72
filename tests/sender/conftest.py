"""Fixtures of the sender's tests: a receiver on loopback, and what sends to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from tests.support.certificates import Authority
from tests.support.poster import Poster, Posters
from tests.support.receiver import Receiver, open_receiver


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One authority for the whole run: making its key takes a while."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver]:
    async with open_receiver() as receiver:
        yield receiver


@pytest.fixture
async def posters(authority: Authority) -> AsyncGenerator[Posters]:
    posters = Posters(authority)
    yield posters
    await posters.aclose()


@pytest.fixture
def poster(posters: Posters) -> Poster:
    return posters.make()
