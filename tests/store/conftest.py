"""Plain sessions for the tests of the SQL itself: no part of the product stands between them and the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import psycopg
import pytest

from tests.support.emitting import Open, Session
from tests.support.migrated import copy_of

STATEMENT_TIMEOUT: Final = "-c statement_timeout=10s"
"""The deadline of these tests, which have no event loop and so no fail_after."""


EMPTY: Final = """
    TRUNCATE dealix.events, dealix.event_keys, dealix.outbox, dealix.deliveries, dealix.attempts, dealix.roster,
             dealix.subscriptions, dealix.subscription_health
"""


@pytest.fixture(scope="session", params=["embedded", pytest.param("debian", marks=pytest.mark.external_postgres)])
def shared_database(request: pytest.FixtureRequest) -> str:
    """A migrated database on each server, one for all tests that only add rows to it: these are many."""
    return copy_of(request.getfixturevalue(f"{request.param}_template"))


@pytest.fixture
def open_session(shared_database: str) -> Iterator[Open]:
    """Opens sessions in autocommit on an emptied database, on each server; closes them after the test."""
    with ExitStack() as stack:

        def open_one() -> Session:
            return stack.enter_context(psycopg.connect(shared_database, autocommit=True, options=STATEMENT_TIMEOUT))

        open_one().execute(EMPTY)
        yield open_one


@pytest.fixture
def db(open_session: Open) -> Session:
    return open_session()
