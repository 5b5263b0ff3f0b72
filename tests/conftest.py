"""What holds for every test. Fixtures live in the conftest.py of each part's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = [
    "tests.support.postgres",  # embedded_server, debian_postgres
    "tests.support.migrated",  # migrated_database, debian_database, any_database
    "tests.support.own_server",  # own_server
    "tests.e2e.figures",  # tell
    "tests.e2e.fixtures",  # installation, receiver
]

settings.register_profile("default", deadline=None, print_blob=True)  # deadlines stand in the tests: fail_after
settings.register_profile("fuzz", parent=settings.get_profile("default"), max_examples=20_000)
settings.load_profile("fuzz" if "FUZZ_S" in os.environ else "default")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """An `external_postgres` test without its server is skipped here, and fails in CI, where nobody would miss it."""
    if item.get_closest_marker("external_postgres") and not Path("/usr/lib/postgresql/15/bin/postgres").exists():
        reason = "Debian's postgresql-15 is not installed"
        (pytest.fail if "CI" in os.environ else pytest.skip)(reason)
