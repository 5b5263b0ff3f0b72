"""Whether the server takes sessions: the only word on that which counts is a session."""

from __future__ import annotations

from typing import Final

import psycopg

from daemon.embedded_postgres.address import NAME

CONNECT_S: Final = 2
"""libpq takes no less."""


def answers(url: str, *, make_database: bool = False) -> bool:
    """Whether a session can be opened and the database is there, which `make_database` makes sure of."""
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_S, dbname="postgres") as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [NAME]).fetchone()
            if known is None and make_database:
                connection.execute(f"CREATE DATABASE {NAME}")
            return known is not None or make_database
    except psycopg.Error:
        return False
