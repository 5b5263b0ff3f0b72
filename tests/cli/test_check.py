"""`dealix check`: a line for each thing that is in order, and a reason for what is not."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psycopg
import pytest
import trio

from config.settings import load
from daemon.ids import CustomerId
from daemon.key_file import load_key_ring
from daemon.store import subscriptions
from daemon.store.connection import connect
from tests.cli.conftest import Dealix
from tests.support.postgres import fresh_database


def subscribe(url: str, *endpoints: str) -> None:
    async def run() -> None:
        with trio.fail_after(10):
            async with await connect(url, timeout_s=5, application_name="test") as conn:
                for endpoint in endpoints:
                    await subscriptions.create(
                        conn,
                        ring=load_key_ring(load(None, os.environ)),
                        customer_id=CustomerId("acme"),
                        endpoint_url=endpoint,
                        events=[],
                        description=None,
                    )

    trio.run(run)


def test_a_fresh_machine_is_in_order_and_stays_untouched(dealix: Dealix) -> None:
    ended = dealix("check")
    assert ended.code == 0
    assert ended.out.count("will be made at the first start") == 2
    assert [line.split()[0] for line in ended.out.splitlines()] == ["ok"] * 4
    assert not Path(os.environ["DEALIX_DATA_DIR"]).exists()


def test_a_database_in_order_is_named_with_its_version(on_database: Dealix, migrated_database: str) -> None:
    subscribe(migrated_database, "https://localhost:8443/hook", "https://192.0.2.1/", "https://[2001:db8::1]/")
    ended = on_database("check")
    assert ended.code == 0
    assert "database: Postgres 18" in ended.out
    assert "database: schema is up to date" in ended.out
    assert "sealing key: " + os.environ["DEALIX_DATA_DIR"] in ended.out
    assert "egress: 1 of 1 endpoints' names resolve" in ended.out


def test_a_database_without_schema_is_in_order_only_if_the_daemon_may_make_it(
    dealix: Dealix, embedded_server: str
) -> None:
    url = fresh_database(embedded_server)
    assert "no schema yet" in dealix("check", DEALIX_DATABASE__URL=url).out
    with psycopg.connect(url) as db:
        assert db.execute("SELECT to_regnamespace('dealix')").fetchone() == (None,)
    ended = dealix("check", DEALIX_DATABASE__MIGRATE="false")
    assert ended.code == 1
    assert "FAILED  database: the database's schema is older" in ended.out


def test_a_database_that_is_away_fails_and_the_other_checks_still_run(dealix: Dealix) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ended = dealix("check", DEALIX_DATABASE__URL=f"postgresql://127.0.0.1:{closed.getsockname()[1]}/x")
    assert ended.code == 1
    assert "FAILED  database: cannot connect to the database:" in ended.out
    assert "ok      egress" in ended.out


@pytest.mark.threat("N98")
def test_a_sealing_key_that_opens_no_secret_fails(on_database: Dealix, migrated_database: str, tmp_path: Path) -> None:
    subscribe(migrated_database, "https://localhost/")
    assert on_database("check").code == 0
    os.environ["DEALIX_DATA_DIR"] = str(tmp_path)  # the fixture puts the old one back
    load_key_ring(load(None, os.environ))
    ended = on_database("check")
    assert ended.code == 1
    assert "a sealing key is not there, but in use: " in ended.out
    assert "(needed by 1 subscriptions)" in ended.out


@pytest.mark.parametrize(("names", "code"), [(("a.invalid", "b.invalid"), 1), (("a.invalid", "localhost"), 0)])
def test_names_that_do_not_resolve_are_named_and_fail_only_if_none_does(
    on_database: Dealix, migrated_database: str, names: tuple[str, ...], code: int
) -> None:
    subscribe(migrated_database, *(f"https://{name}/" for name in names))
    ended = on_database("check")
    assert ended.code == code
    assert "a.invalid" in ended.out


def test_a_proxy_is_tried_and_one_in_the_environment_is_said_to_be_ignored(on_database: Dealix) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        assert "HTTPS_PROXY is set, which is not read" in on_database("check", HTTPS_PROXY=url).out
        ended = on_database("check", DEALIX_EGRESS__PROXY_URL=url)
        assert (ended.code, "accepts connections" in ended.out) == (0, True)
    ended = on_database("check")
    assert ended.code == 1
    assert "does not accept connections" in ended.out


def test_with_a_direct_url_both_ways_to_the_database_are_tried(on_database: Dealix, migrated_database: str) -> None:
    both = on_database("check", DEALIX_DATABASE__DIRECT_URL=migrated_database)
    assert (both.code, "url answers as well as direct_url" in both.out) == (0, True)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = f"postgresql://127.0.0.1:{closed.getsockname()[1]}/x"
        assert on_database("check", DEALIX_DATABASE__URL=away).code == 1
        assert on_database("check", DEALIX_DATABASE__URL=migrated_database, DEALIX_DATABASE__DIRECT_URL=away).code == 1
