"""The server itself: what strangers do to a socket, and what becomes of connections."""

from __future__ import annotations

import json
from typing import Final

import httpx
import pytest
import trio

from api.connection import Limits
from api.server import listen
from daemon.errors import SettingsInvalid
from tests.support.api import BASE, Served, open_api
from tests.support.log import Row, write
from tests.support.wire import answer_to, one_answer

GET: Final = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
BODY: Final = b'{"events": []}'
HEAD: Final = (
    b"PATCH " + BASE.encode() + b"/events/emit/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: 14\r\n\r\n"
)


async def test_a_connection_answered_before_its_body_came_is_used_again(api: Served) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", api.port)
    async with stream:
        for pause_s in [0, 0.002, 0.03] * 15:
            await stream.send_all(HEAD)
            await trio.sleep(pause_s)
            await stream.send_all(BODY)
            with trio.fail_after(5):
                status, body = await one_answer(stream)
            assert (status, json.loads(body)["code"]) == (405, "method_not_allowed")


async def test_a_body_that_never_comes_after_the_answer_costs_its_connection(api: Served) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", api.port)
    async with stream:
        await stream.send_all(HEAD)
        with trio.fail_after(5):
            status, _ = await one_answer(stream)
            assert status == 405
            assert await stream.receive_some() == b""


async def test_the_sender_makes_room_while_a_request_waits_for_its_answer_and_not_for_an_open_stream(
    api: Served,
) -> None:
    gate, key = api.engine.lanes.gate, api.keys["acme"]
    with trio.fail_after(10):
        async with await trio.open_tcp_stream("127.0.0.1", api.port) as stream:
            await stream.send_all(HEAD.replace(b"PATCH", b"POST") + BODY[:-1])
            while gate.guests == 0:
                await trio.sleep(0.01)
            await stream.send_all(BODY[-1:])
            await one_answer(stream)
            while gate.guests:
                await trio.sleep(0.01)
        async with await trio.open_tcp_stream("127.0.0.1", api.port) as stream:
            asked = f"GET {BASE}/events/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
            await stream.send_all(asked.encode())
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
            assert gate.guests == 0


@pytest.mark.threat("N80")
async def test_a_body_that_does_not_come_in_time_is_408(api: Served) -> None:
    api.app.config["BODY_TIMEOUT"] = 0.2
    key = api.keys["acme"].encode()
    request = b"POST " + BASE.encode() + b"/webhooks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key
    request += b"\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"
    status, body = await answer_to(api, request)
    assert (status, json.loads(body)["code"]) == (408, "request_timeout")


@pytest.mark.parametrize("length", [b"Content-Length: 9999999999", b"Transfer-Encoding: chunked"])
@pytest.mark.threat("N70")
async def test_a_body_over_a_mebibyte_is_413_and_not_kept(api: Served, length: bytes) -> None:
    request = b"POST " + BASE.encode() + b"/webhooks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request += b"Authorization: Bearer " + api.keys["acme"].encode() + b"\r\n" + length + b"\r\n\r\n"
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    status, body = await answer_to(api, request + chunk * 20)
    assert (status, json.loads(body)["code"]) == (413, "body_too_large")


async def test_a_target_that_is_no_path_is_refused_and_nothing_is_logged_as_a_bug(
    api: Served, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for target in (b"?a=1", b"*", b"healthz", b"http://h", b"ftp://h/healthz", b"[", b"http:///healthz?x", b"\x7f"):
        status, _ = await answer_to(api, b"OPTIONS " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status in {400, 405}, target
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err + caplog.text


async def test_a_target_in_the_form_for_proxies_is_served(api: Served) -> None:
    assert (await answer_to(api, b"GET http://any.example/healthz HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200


NOT_QUITE_HTTP: Final = [
    b"GET /healthz HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
]


async def test_a_request_that_is_not_http_as_it_should_be_is_a_4xx_and_others_are_served(api: Served) -> None:
    for head in NOT_QUITE_HTTP:
        status, body = await answer_to(api, head)
        assert 400 <= status < 500, head[:80]
        assert json.loads(body)["status"] == status
        assert (await api.client.get("/healthz")).status_code == 200


async def test_a_wish_for_websockets_is_not_heard(api: Served) -> None:
    upgrade = b"Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    assert await answer_to(api, GET[:-2] + upgrade + b"\r\n") == (200, b'{"status":"ok"}')


async def test_a_head_that_comes_too_slowly_and_an_idle_connection_are_closed(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_api(migrated_database, limits=Limits(head_s=0.3, idle_s=0.3)) as served:
            for sent in (b"GET /healthz HTTP/1.1\r\nHo", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
                stream = await trio.open_tcp_stream("127.0.0.1", served.port)
                async with stream:
                    await stream.send_all(sent)
                    with trio.fail_after(5):
                        while await stream.receive_some():
                            pass


async def test_a_stop_lets_the_request_in_flight_end_and_refuses_new_connections(api: Served) -> None:
    await api.acme.subscribe()
    answers: list[httpx.Response] = []

    async def emit_and_wait() -> None:
        event = {"customer_id": "acme", "event_type": "deal.won"}
        answers.append(await api.ops.post("/events/emit", event, wait_s=1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(emit_and_wait)
        while not await api.rows("SELECT 1 FROM dealix.events"):
            await trio.sleep(0.01)
        api.stop.set()
        with pytest.raises(OSError, match="all attempts to connect"):
            while True:
                stream = await trio.open_tcp_stream("127.0.0.1", api.port)
                await stream.aclose()
                await trio.sleep(0.01)
    assert answers[0].status_code == 200
    assert answers[0].json()["pending"] == 1


async def test_a_stop_answers_the_request_that_was_on_its_way_and_closes_idle_connections(api: Served) -> None:
    streams = [await trio.open_tcp_stream("127.0.0.1", api.port) for _ in range(3)]
    used, fresh, idle = streams
    for stream in (used, idle):
        await stream.send_all(GET)
        assert (await one_answer(stream))[0] == 200
    api.stop.set()
    await trio.sleep(0.1)
    for stream in (used, fresh):
        await stream.send_all(GET)
        with trio.fail_after(5):
            answer = await stream.receive_some()
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer
    with trio.fail_after(5):
        assert await idle.receive_some() == b""
    for stream in streams:
        await stream.aclose()


async def test_a_client_who_leaves_takes_its_request_along(api: Served, caplog: pytest.LogCaptureFixture) -> None:
    await api.acme.subscribe()
    event = {"customer_id": "acme", "event_type": "deal.won"}
    for _ in range(5):
        with trio.move_on_after(0.1):
            await api.ops.post("/events/emit", event, wait_s=30)
    with trio.fail_after(5):
        while api.pool.statistics().open != api.pool.statistics().idle:
            await trio.sleep(0.01)
    assert (await api.client.get("/healthz")).status_code == 200
    assert "Traceback" not in caplog.text


async def test_a_peer_who_takes_no_answers_cannot_hold_up_the_stop(migrated_database: str) -> None:
    with trio.fail_after(30):
        async with open_api(migrated_database, limits=Limits(send_s=1.0)) as served:
            async with served.pool.connection(10) as conn:
                await write(conn, [Row("whk_" + "1" * 24, f"e{n}", error="x" * 4000) for n in range(500)])
            stream = await trio.open_tcp_stream("127.0.0.1", served.port)
            key = served.keys["acme"].encode()
            ask = b"GET " + BASE.encode() + b"/deliveries?limit=500 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key
            await stream.send_all((ask + b"\r\n\r\n") * 10)  # twenty megabytes are asked for, none is taken
            await trio.sleep(0.5)
            stopping_at = trio.current_time()
            served.stop.set()
        assert trio.current_time() - stopping_at < 10
        await stream.aclose()


def test_an_address_in_use_is_a_fault_of_the_settings() -> None:
    with listen("127.0.0.1:0") as taken, pytest.raises(SettingsInvalid, match="cannot listen"):
        listen(f"127.0.0.1:{taken.getsockname()[1]}")
