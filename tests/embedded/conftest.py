"""Places for data that are removed after use: pytest would keep those of three runs, at 40 MB a cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty directory for one test, closed to other accounts."""
    with tempfile.TemporaryDirectory(prefix="dealix-test-") as place:
        yield Path(place)


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """Data that the tests of a module share; no server runs on it between them."""
    with tempfile.TemporaryDirectory(prefix="dealix-test-") as place:
        yield Path(place, "dealix")
