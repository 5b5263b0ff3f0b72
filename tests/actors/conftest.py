"""Databases for the engine's tests: one for all of them, emptied before each, since a copy for each costs more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import psycopg
import pytest

from tests.support.migrated import copy_of, drop

_EMPTY: Final = """
    DO $$
    DECLARE
        tables text;
    BEGIN
        SELECT string_agg(oid::regclass::text, ', ') INTO tables FROM pg_class
        WHERE relnamespace = 'dealix'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
          AND relname NOT IN ('event_types', 'event_type_details', 'schema_migrations');
        EXECUTE 'TRUNCATE ' || tables;
    END $$
"""


def _emptied(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        # Nobody of the test before may write into this one, and a crowd of its sessions may still be leaving.
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        connection.execute(_EMPTY)
    return url


@pytest.fixture(scope="session")
def _embedded(embedded_template: str) -> Iterator[str]:
    url = copy_of(embedded_template)
    yield url
    drop(url)


@pytest.fixture(scope="session")
def _debian(debian_template: str) -> Iterator[str]:
    url = copy_of(debian_template)
    yield url
    drop(url)


@pytest.fixture
def migrated_database(_embedded: str) -> str:
    """The libpq URL of a database with the whole schema and no customer's rows, on the embedded server."""
    return _emptied(_embedded)


@pytest.fixture(params=["_embedded", pytest.param("_debian", marks=pytest.mark.external_postgres)])
def any_database(request: pytest.FixtureRequest) -> str:
    """As `migrated_database`, once on each server: for what may depend on Postgres' version."""
    return _emptied(request.getfixturevalue(request.param))
