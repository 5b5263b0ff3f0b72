"""The servers that other tests stand on."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.postgres import fresh_database


def test_a_fresh_database_is_empty_and_on_the_embedded_server(embedded_server: str) -> None:
    with psycopg.connect(fresh_database(embedded_server)) as connection:
        assert connection.info.server_version // 10_000 == 18
        assert connection.execute("SELECT count(*) FROM pg_stat_user_tables").fetchone() == (0,)


@pytest.mark.external_postgres
def test_debians_server_gives_fresh_databases_too(debian_postgres: str) -> None:
    with psycopg.connect(fresh_database(debian_postgres)) as connection:
        assert connection.info.server_version // 10_000 == 15
