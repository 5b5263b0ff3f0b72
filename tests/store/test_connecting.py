"""Making a connection: several hosts, silent ones, names, TLS, and errors that a person can read."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Final, LiteralString
from urllib.parse import quote

import psycopg
import pytest
import trio
import trustme

from daemon.errors import DatabaseUnavailable, SettingsInvalid
from daemon.store.connection import Connection, connect
from daemon.store.hosts import parameters, split
from tests.support.own_server import CONNECTIONS, PASSWORD, OwnServer

LIMIT_S: Final = 15.0
EMBEDDED_MAJOR: Final = 18
AUTHORITY: Final = trustme.CA()
REFUSED: Final = "127.0.0.1:1"


@contextmanager
def mute_port() -> Generator[int]:
    """A port that takes connections and never says anything."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        yield mute.getsockname()[1]


def over(*hosts: str, settings: str = "") -> str:
    return f"postgresql://dealix:{PASSWORD}@{','.join(hosts)}/postgres?{settings}"


async def open_(url: str, timeout_s: float = 5.0) -> Connection:
    return await connect(url, timeout_s=timeout_s, application_name="under-test")


async def value(conn: Connection, query: LiteralString) -> object:
    row = await (await conn.execute(query)).fetchone()
    assert row is not None
    return row[0]


async def test_a_connection_has_its_name_its_options_and_autocommit(own_server: OwnServer) -> None:
    url = f"{own_server.url}?options=-c%20work_mem%3D1MB"
    options = {"statement_timeout": "7s", "dealix.words": "a b\\c 'd'", "application_name": "overridden"}
    with trio.fail_after(LIMIT_S):
        async with await connect(url, timeout_s=5, application_name="under-test", options=options) as conn:
            assert conn.autocommit
            assert await value(conn, "SHOW statement_timeout") == "7s"
            assert await value(conn, "SHOW dealix.words") == options["dealix.words"]
            assert await value(conn, "SHOW work_mem") == "1MB"
            assert await value(conn, "SHOW application_name") == "under-test"
            assert await value(conn, "SHOW client_encoding") == "UTF8"


async def test_a_peer_that_falls_silent_is_noticed_by_the_socket(own_server: OwnServer) -> None:
    with trio.fail_after(LIMIT_S):
        async with await open_(own_server.url) as conn:
            with socket.socket(fileno=os.dup(conn.fileno())) as peer:
                assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                idle = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                interval = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
                count = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
                assert idle + interval * count <= 30
                assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 5_000


async def test_a_mute_port_is_given_up_at_the_deadline(own_server: OwnServer) -> None:
    with mute_port() as port, trio.fail_after(LIMIT_S):
        started = trio.current_time()
        with pytest.raises(DatabaseUnavailable, match=rf"127.0.0.1, port {port}: no answer in time"):
            await open_(over(f"127.0.0.1:{port}"), timeout_s=0.3)
        assert 0.3 <= trio.current_time() - started < 0.6


async def test_connecting_can_be_cancelled(own_server: OwnServer) -> None:
    with mute_port() as port, trio.move_on_after(0.2) as scope:
        await open_(over(f"127.0.0.1:{port}"), timeout_s=LIMIT_S)
    assert scope.cancelled_caught


async def test_the_next_host_is_tried_where_one_refuses_or_says_nothing(own_server: OwnServer) -> None:
    with mute_port() as port, trio.fail_after(LIMIT_S):
        started = trio.current_time()
        url = over(REFUSED, f"127.0.0.1:{port}", "nowhere.invalid", f"127.0.0.1:{own_server.port}")
        async with await open_(url, timeout_s=2) as conn:
            assert conn.info.port == own_server.port
        assert trio.current_time() - started < 2


async def test_of_several_hosts_the_one_that_takes_writes_is_chosen(own_server: OwnServer) -> None:
    with psycopg.connect(own_server.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE follower")
        admin.execute("CREATE DATABASE leader")
        admin.execute("ALTER DATABASE follower SET default_transaction_read_only = on")
    here = f"127.0.0.1:{own_server.port}"
    follower = f"postgresql://dealix:{PASSWORD}@{here},{here}/follower"
    leader = f"postgresql://dealix:{PASSWORD}@{here},{here}/leader"
    with trio.fail_after(LIMIT_S):
        with pytest.raises(DatabaseUnavailable, match="session is read-only"):
            await open_(follower)
        for url in (f"{follower}?target_session_attrs=any", leader):
            await (await open_(url)).close()


async def test_a_name_is_resolved_and_each_of_its_addresses_is_tried(own_server: OwnServer) -> None:
    with trio.fail_after(LIMIT_S):
        async with await open_(over(f"localhost:{own_server.port}")) as conn:
            assert conn.info.host == "localhost"


async def test_a_name_without_an_address_is_an_outage_and_says_so() -> None:
    with trio.fail_after(LIMIT_S):
        with pytest.raises(DatabaseUnavailable, match=r"host nowhere\.invalid: "):
            await open_("postgresql://nowhere.invalid/db")
        with pytest.raises(DatabaseUnavailable, match="not a host name"):
            await open_(f"postgresql://{'a' * 70}.example/db")


async def test_a_refused_connection_and_a_wrong_password_are_readable_and_show_no_password(
    own_server: OwnServer,
) -> None:
    wrong = "hunter2 & co"
    url = f"postgresql://{quote(wrong)}:{quote(wrong)}@{REFUSED},127.0.0.1:{own_server.port}/postgres"
    with trio.fail_after(LIMIT_S):
        with pytest.raises(DatabaseUnavailable) as caught:
            await open_(url)
    text = str(caught.value)
    assert "Connection refused" in text
    assert "password authentication failed for user" in text
    assert wrong not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "conninfo",
    [
        f"postgresql://dealix:{PASSWORD}%@h/db",
        f"host=h {PASSWORD}",
        f"host=h pasword={PASSWORD}",
        f"postgresql://dealix:{PASSWORD}@h1:1,h2:2,h3:3/db?port=1,2",
        f"host=h1,h2 hostaddr=127.0.0.1 password={PASSWORD}",
    ],
)
async def test_a_malformed_url_is_a_fault_of_the_settings_and_is_not_repeated(conninfo: str) -> None:
    with trio.fail_after(LIMIT_S):
        with pytest.raises(SettingsInvalid) as caught:
            await open_(conninfo)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None


def test_hosts_addresses_and_ports_are_paired_in_their_order() -> None:
    pairs = split(parameters("host=a,b,c hostaddr=10.0.0.1,10.0.0.2,10.0.0.3 port=1,2,3"))
    assert [(p["host"], p["hostaddr"], p["port"]) for p in pairs] == [
        ("a", "10.0.0.1", "1"),
        ("b", "10.0.0.2", "2"),
        ("c", "10.0.0.3", "3"),
    ]
    assert [p["port"] for p in split(parameters("host=a,b port=6000"))] == ["6000", "6000"]
    assert [p.get("host") for p in split(parameters("dbname=x"))] == [None]
    assert "target_session_attrs" not in parameters("host=a")
    assert parameters("host=a,b")["target_session_attrs"] == "read-write"
    assert parameters("host=a,b target_session_attrs=any")["target_session_attrs"] == "any"


async def test_a_server_that_is_starting_or_full_is_an_outage(own_server: OwnServer) -> None:
    held: list[Connection] = []
    with trio.fail_after(LIMIT_S):
        try:
            with pytest.raises(DatabaseUnavailable, match=r"too many clients|reserved"):
                while len(held) <= CONNECTIONS:
                    held.append(await open_(own_server.url))
        finally:
            for conn in held:
                await conn.close()


async def test_a_frozen_server_does_not_hold_a_connect_beyond_its_time(own_server: OwnServer) -> None:
    own_server.freeze()
    with trio.fail_after(LIMIT_S):
        started = trio.current_time()
        with pytest.raises(DatabaseUnavailable, match="no answer in time"):
            await open_(own_server.url, timeout_s=0.5)
        assert trio.current_time() - started < 1


@pytest.fixture
def tls_server(own_server: OwnServer) -> Iterator[OwnServer]:
    """Debian's with TLS for "localhost", or the embedded one, which is built without."""
    if own_server.major == EMBEDDED_MAJOR:
        yield own_server
        return
    certificate = AUTHORITY.issue_cert("localhost")
    own_server.put("server.crt", certificate.cert_chain_pems[0].bytes())
    own_server.put("server.key", certificate.private_key_pem.bytes())
    own_server.stop()
    own_server.start("ssl=on")
    yield own_server
    own_server.restart()


async def test_over_tls_names_are_verified_queries_cancelled_and_both_directions_filled(tls_server: OwnServer) -> None:
    with AUTHORITY.cert_pem.tempfile() as root, trio.fail_after(LIMIT_S):
        settings = f"sslmode=verify-full&sslrootcert={quote(root)}"
        by_name = over(f"localhost:{tls_server.port}", settings=settings)
        if tls_server.major == EMBEDDED_MAJOR:
            with pytest.raises(DatabaseUnavailable, match="does not support SSL"):
                await open_(by_name)
            return
        async with await open_(by_name) as conn:
            assert conn.pgconn.ssl_in_use
            with trio.move_on_after(0.1) as scope:
                await conn.execute("SELECT pg_sleep(10)")
            assert scope.cancelled_caught
            assert await value(conn, "SELECT 7") == 7
            async with conn.pipeline():
                big = "SELECT repeat('y', 1000000), %s::text"
                cursors = [await conn.execute(big, ("x" * 100_000,)) for _ in range(20)]
                assert [len((await cur.fetchone() or ("",))[0]) for cur in cursors] == [1_000_000] * 20
        with pytest.raises(DatabaseUnavailable, match="certificate"):
            await open_(over(f"127.0.0.1:{tls_server.port}", settings=settings))
