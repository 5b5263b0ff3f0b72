"""Clients who are slow, many, greedy or gone: each is bounded, and the others are answered as before."""

from __future__ import annotations

import gc
import json
import statistics
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import pytest
import trio

from api.connection import Limits
from tests.e2e.figures import Tell
from tests.support.api import BASE, Served, open_api
from tests.support.log import Row, write
from tests.support.wire import one_answer

STRICT: Final = Limits(connections=120, head_s=1.0, idle_s=1.0, send_s=1.0)
ATTACKERS: Final = 60
GET: Final = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
SLACK_S: Final = 2.0
"""What a busy machine may add to a deadline."""


@pytest.fixture
async def strict_api(migrated_database: str) -> AsyncGenerator[Served]:
    """The API with limits that a test can wait for."""
    with trio.fail_after(50):
        async with open_api(migrated_database, limits=STRICT) as served:
            served.app.config["BODY_TIMEOUT"] = 1.0
            yield served


async def answered_in(served: Served, count: int = 40) -> list[float]:
    """Seconds that well-formed requests took, each of which was answered."""
    took: list[float] = []
    for _ in range(count):
        began = trio.current_time()
        assert (await served.acme.get("/webhooks")).status_code == 200
        took.append(trio.current_time() - began)
        await trio.sleep(0.01)
    return took


Attack = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def under_attack(served: Served, attack: Attack, count: int = ATTACKERS) -> AsyncGenerator[list[float]]:
    """`count` clients who connect and attack. Yields how long each was let, which is complete after the block."""
    lasted: list[float] = []

    async def one() -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        async with stream:
            began = trio.current_time()
            try:
                await attack(stream)
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
            lasted.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
        yield lasted


async def drip(stream: trio.SocketStream, data: bytes) -> None:
    """Byte by byte, for ever, beginning anew at the end."""
    while True:
        for byte in data:
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.2)


async def others_hardly_notice(served: Served, attack: Attack, within_s: float, tell: Tell) -> None:
    """All others are answered about as fast as before, and each attacker is gone in time."""
    before = statistics.median(await answered_in(served))
    async with under_attack(served, attack) as lasted:
        meanwhile = statistics.median(await answered_in(served))
    tell(f"median {before * 1000:.1f} ms before, {meanwhile * 1000:.1f} ms meanwhile; last gone in {max(lasted):.1f} s")
    assert len(lasted) == ATTACKERS
    assert max(lasted) < within_s + SLACK_S
    assert meanwhile < 5 * before + 0.05


@pytest.mark.threat("N80")
async def test_heads_that_drip_in_are_cut_at_their_deadline(strict_api: Served, tell: Tell) -> None:
    async def attack(stream: trio.SocketStream) -> None:
        await drip(stream, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 1000)

    await others_hardly_notice(strict_api, attack, STRICT.head_s, tell)


@pytest.mark.threat("N80")
async def test_bodies_that_drip_in_are_cut_at_their_deadline(strict_api: Served, tell: Tell) -> None:
    head = b"POST " + BASE.encode() + b"/webhooks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Authorization: Bearer " + strict_api.keys["globex"].encode() + b"\r\nContent-Length: 9999\r\n\r\n"

    async def attack(stream: trio.SocketStream) -> None:
        await stream.send_all(head)
        await drip(stream, b" ")

    # The body's own second, two for the rest of it after the answer, one to read on before the close.
    await others_hardly_notice(strict_api, attack, 1.0 + 2.0 + STRICT.linger_s, tell)


async def test_trailers_and_chunks_that_never_end_are_cut_too(strict_api: Served, tell: Tell) -> None:
    head = b"POST " + BASE.encode() + b"/webhooks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Authorization: Bearer " + strict_api.keys["globex"].encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def attack(stream: trio.SocketStream) -> None:
        await stream.send_all(head + b"1\r\n{\r\n0\r\n")
        await drip(stream, b"X-A: b\r\n")

    await others_hardly_notice(strict_api, attack, 1.0 + 2.0 + STRICT.linger_s, tell)


async def test_a_body_in_a_hundred_thousand_chunks_stops_nobody_else(strict_api: Served) -> None:
    head = b"POST " + BASE.encode() + b"/webhooks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Authorization: Bearer " + strict_api.keys["globex"].encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    stream = await trio.open_tcp_stream("127.0.0.1", strict_api.port)
    longest = 0.0
    async with stream, trio.open_nursery() as nursery:

        async def ask() -> None:
            nonlocal longest
            for took in await answered_in(strict_api, 20):
                longest = max(longest, took)
            nursery.cancel_scope.cancel()

        nursery.start_soon(ask)
        await stream.send_all(head)
        while True:
            try:
                await stream.send_all(b"1\r\n \r\n" * 10_000)
            except trio.BrokenResourceError:  # cut at its deadline
                await trio.sleep_forever()
    assert 0 < longest < 1.0


async def test_a_slow_head_is_told_so_and_silence_is_not(strict_api: Served) -> None:
    for sent, told in ((b"GET /healthz HTTP/1.1\r\n", True), (b"", False)):
        stream = await trio.open_tcp_stream("127.0.0.1", strict_api.port)
        async with stream:
            if sent:
                await stream.send_all(sent)
            answer = b""
            while data := await stream.receive_some():
                answer += data
            if told:
                head, _, body = answer.partition(b"\r\n\r\n")
                assert (head.split(b" ")[1], json.loads(body)["code"]) == (b"408", "request_timeout")
            else:
                assert answer == b""


async def test_more_clients_than_places_push_out_who_keeps_us_waiting(migrated_database: str) -> None:
    limits = Limits(connections=20)
    with trio.fail_after(30):
        async with open_api(migrated_database, limits=limits) as served:
            assert (await served.acme.get("/webhooks")).status_code == 200
            silent = [await trio.open_tcp_stream("127.0.0.1", served.port) for _ in range(300)]
            for took in await answered_in(served, 30):
                assert took < SLACK_S
            closed = 0
            for stream in silent:
                with trio.move_on_after(0.01):
                    closed += await stream.receive_some() == b""
            assert 300 - limits.connections <= closed < 300
            for stream in silent:
                await stream.aclose()


@pytest.mark.parametrize("key", ["acme", "nobody"])
async def test_requests_whose_body_never_comes_hold_no_place_that_others_need(migrated_database: str, key: str) -> None:
    with trio.fail_after(30):
        async with open_api(migrated_database, limits=Limits(connections=20)) as served:
            served.app.config["BODY_TIMEOUT"] = 2.0
            head = b"POST " + BASE.encode() + b"/webhooks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            head += b"Content-Length: 9\r\nAuthorization: Bearer " + served.keys.get(key, "dlx_x").encode()

            async def attack(stream: trio.SocketStream) -> None:
                await stream.send_all(head + b"\r\n\r\n")

            await answered_in(served, 1)  # a key in use: what others fail at this address does not concern it
            async with under_attack(served, attack, 60):
                assert max(await answered_in(served, 30)) < SLACK_S


async def test_connections_that_end_after_a_bad_request_hold_no_place_either(migrated_database: str) -> None:
    with trio.fail_after(30):
        async with open_api(migrated_database, limits=Limits(connections=20, linger_s=60)) as served:

            async def attack(stream: trio.SocketStream) -> None:
                await stream.send_all(b"no HTTP\r\n\r\n")
                await trio.sleep(3)

            async with under_attack(served, attack, 60):
                await trio.sleep(0.3)
                assert max(await answered_in(served, 30)) < SLACK_S


async def test_a_newcomer_waits_where_all_places_are_at_work(migrated_database: str) -> None:
    statuses: list[int] = []
    with trio.fail_after(30):
        async with open_api(migrated_database, limits=Limits(connections=1)) as served:
            await served.acme.subscribe()
            event = {"customer_id": "acme", "event_type": "deal.won"}

            async def emit_and_wait() -> None:
                statuses.append((await served.ops.post("/events/emit", event, wait_s=1)).status_code)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(emit_and_wait)
                while not await served.rows("SELECT 1 FROM dealix.events"):
                    await trio.sleep(0.01)
                stream = await trio.open_tcp_stream("127.0.0.1", served.port)
                async with stream:
                    await stream.send_all(GET)
                    assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
                    assert statuses == [200]


async def test_an_answer_that_is_read_drop_by_drop_is_given_up(strict_api: Served) -> None:
    async with strict_api.pool.connection(10) as conn:
        await write(conn, [Row("whk_" + "1" * 24, f"e{n}", error="x" * 4000) for n in range(500)])
    ask = b"GET " + BASE.encode() + b"/deliveries?limit=500 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
    stream = await trio.open_tcp_stream("127.0.0.1", strict_api.port)
    read = 0
    async with stream:
        await stream.send_all((ask + strict_api.keys["acme"].encode() + b"\r\n\r\n") * 10)
        began = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                read += len(await stream.receive_some(1000))
                await stream.send_all(b"\r\n")  # told of a reset without reading all that came before it
                await trio.sleep(0.05)
        assert trio.current_time() - began < STRICT.send_s + 3 * SLACK_S
    assert read < 1_000_000


async def test_the_body_of_a_stranger_is_not_kept_while_he_owes_its_end(migrated_database: str) -> None:
    """He was answered 401 when his body began to come."""
    with trio.fail_after(30):
        async with open_api(migrated_database, limits=Limits(connections=120)) as served:
            head = b"POST " + BASE.encode() + b"/webhooks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            answered = 0
            sent = trio.Event()

            async def attack(stream: trio.SocketStream) -> None:
                nonlocal answered
                await stream.send_all(head + b"Content-Length: 1000000\r\n\r\n")
                assert b" 401 " in await stream.receive_some()
                await stream.send_all(bytes(900_000))
                answered += 1
                if answered == 50:
                    sent.set()

            tracemalloc.start()
            try:
                gc.collect()
                before, _ = tracemalloc.get_traced_memory()
                async with under_attack(served, attack, 50):
                    await sent.wait()
                    assert (await served.acme.get("/webhooks")).status_code == 200
                    now, _ = tracemalloc.get_traced_memory()
                    assert now - before < 15_000_000
            finally:
                tracemalloc.stop()


async def test_an_idle_connection_is_closed_and_one_that_is_used_is_not(strict_api: Served) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", strict_api.port)
    async with stream:
        began = trio.current_time()
        while trio.current_time() - began < 2 * STRICT.idle_s:
            await stream.send_all(GET)
            assert (await one_answer(stream))[0] == 200
            await trio.sleep(0.2)
        last_at = trio.current_time()
        assert await stream.receive_some() == b""
        assert trio.current_time() - last_at < STRICT.idle_s + SLACK_S


async def test_clients_who_leave_take_their_requests_and_connections_along(strict_api: Served) -> None:
    await strict_api.acme.subscribe()
    event = json.dumps({"customer_id": "acme", "event_type": "deal.won"}).encode()
    ask = b"POST " + BASE.encode() + b"/events/emit?wait_s=30 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    ask += b"Authorization: Bearer " + strict_api.keys["ops"].encode()
    ask += b"\r\nContent-Length: " + str(len(event)).encode() + b"\r\n\r\n" + event
    tasks = trio.lowlevel.current_statistics().tasks_living
    for _ in range(3):
        streams = [await trio.open_tcp_stream("127.0.0.1", strict_api.port) for _ in range(60)]
        for stream in streams:
            await stream.send_all(ask)
        await trio.sleep(0.2)
        for stream in streams:
            await trio.aclose_forcefully(stream)
    with trio.fail_after(5):
        while trio.lowlevel.current_statistics().tasks_living > tasks + 3:
            await trio.sleep(0.02)
        while strict_api.pool.statistics().open != strict_api.pool.statistics().idle:
            await trio.sleep(0.02)
    assert max(await answered_in(strict_api, 5)) < SLACK_S


@pytest.mark.parametrize(
    "opening",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n\r\n",
    ],
)
async def test_nobody_is_led_into_http_2(api: Served, opening: bytes) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", api.port)
    async with stream:
        await stream.send_all(opening)
        assert (await stream.receive_some()).split(b" ")[:2] in ([b"HTTP/1.1", b"400"], [b"HTTP/1.1", b"404"])
