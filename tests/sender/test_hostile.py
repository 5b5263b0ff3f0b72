"""Receivers that misbehave: each costs a bounded time and memory, and poisons nobody's next POST."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
import trio

from tests.support import answers
from tests.support.answers import Answer, raw, redirect, status
from tests.support.poster import Poster
from tests.support.receiver import Receiver, open_receiver

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize("code", [300, 301, 302, 303, 307, 308])
@pytest.mark.threat("N33-N34")
async def test_redirects_are_recorded_and_never_followed(poster: Poster, receiver: Receiver, code: int) -> None:
    with trio.fail_after(5):
        async with open_receiver() as trap:
            receiver.answer_all(redirect(trap.url("/trap"), code))
            outcome = await poster.post(receiver.url())
            assert (outcome.status_code, dict(outcome.response_headers)["Location"]) == (code, trap.url("/trap"))
            await poster.post(receiver.url())
            assert (trap.connections, len(receiver.received)) == (0, 2)


@pytest.mark.threat("N35")
async def test_refresh_and_location_on_a_success_are_only_headers(poster: Poster, receiver: Receiver) -> None:
    async with open_receiver() as trap:
        receiver.answer_all(status(200, headers={"Refresh": f"0; url={trap.url()}", "Location": trap.url()}))
        with trio.fail_after(5):
            assert (await poster.post(receiver.url())).status_code == 200
        assert trap.connections == 0


TIMEOUTS: dict[str, Answer] = {
    "no answer": answers.hang(),
    "head byte by byte": answers.drip_head(),
    "interim answers now and then": answers.drip(b"HTTP/1.1 100 Continue\r\n\r\n", 0.001),
}


@pytest.mark.parametrize("name", TIMEOUTS)
@pytest.mark.threat("N39", "N43")
async def test_without_a_complete_head_the_deadline_ends_it(poster: Poster, receiver: Receiver, name: str) -> None:
    receiver.answer_all(TIMEOUTS[name])
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url())
        await receiver.wait_for_open(0)
    assert (outcome.status_code, outcome.error_kind) == (None, "timeout")
    assert outcome.error == "No complete answer came within 0.4 s."
    assert 400 <= outcome.duration_ms < 700


BAD_ANSWERS: dict[str, bytes] = {
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "SMTP": b"220 mail.example ESMTP\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "version 0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    "version 2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "HTTP/2 preface": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "empty lines first": b"\r\n\r\n" + OK,
    "two-digit status": b"HTTP/1.1 20 OK\r\n\r\n",
    "four-digit status": b"HTTP/1.1 2000 OK\r\n\r\n",
    "word for status": b"HTTP/1.1 abc OK\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "status 999": b"HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
    "word for length": b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok",
    "endless length": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999999\r\n\r\nok",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "folded header": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "space before colon": b"HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n",
    "header without a name": b"HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 0\r\n\r\n",
    "NUL in a header": b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "switching protocols": b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi",
    "nine interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + OK,
    "10,000 headers": b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 10_000 + b"\r\n",
    "a header of 1 MB": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
@pytest.mark.threat("N39", "N41")
async def test_what_is_not_valid_http_is_a_protocol_failure(poster: Poster, receiver: Receiver, name: str) -> None:
    receiver.answer("/", raw(BAD_ANSWERS[name]), status(200))
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url())
        assert (outcome.status_code, outcome.error_kind) == (None, "protocol")
        assert outcome.error is not None
        assert outcome.error.startswith("The answer is not valid HTTP: ")
        assert outcome.duration_ms < 350
        assert (await poster.post(receiver.url())).status_code == 200
    assert receiver.connections == 2


async def test_some_interim_answers_are_passed_over(poster: Poster, receiver: Receiver) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nContent-Length: 5\r\n\r\n"
    receiver.answer_all(raw(b"HTTP/1.1 100 Continue\r\n\r\n" + hints + OK))
    with trio.fail_after(5):
        outcomes = [await poster.post(receiver.url()) for _ in range(2)]
    assert [o.status_code for o in outcomes] == [200, 200]
    assert outcomes[0].response_headers == (("Content-Length", "2"),)
    assert receiver.connections == 1


async def test_trailers_and_later_answers_add_no_headers(poster: Poster, receiver: Receiver) -> None:
    trailer = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nRetry-After: 7\r\n\r\n"
    receiver.answer_all(raw(trailer + b"HTTP/1.1 503 No\r\nRetry-After: 8\r\nContent-Length: 0\r\n\r\n"))
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url())
    assert (outcome.status_code, outcome.retry_after) == (503, None)
    assert outcome.response_headers == (("Transfer-Encoding", "chunked"),)


FLOODS: dict[str, tuple[Answer, int | None, str | None]] = {
    "interim answers": (answers.interim_flood(), None, "protocol"),
    "headers": (answers.endless_headers(), None, "protocol"),
    "10 GB of body": (answers.huge_body(), 200, None),
    "10 GB of body with 500": (answers.huge_body(500), 500, None),
    "body without an end": (answers.endless(b"HTTP/1.1 200 OK\r\n\r\n", b"z" * 65536), 200, None),
    "chunks": (
        answers.endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"z" * 4096 + b"\r\n"),
        200,
        None,
    ),
    "a chunk extension": (
        answers.endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536),
        200,
        None,
    ),
    "trailers": (
        answers.endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-T: y\r\n" * 5000),
        200,
        None,
    ),
    "a trailer": (
        answers.endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"y" * 65536),
        200,
        None,
    ),
    "an honest gzip bomb": (answers.gzip_bomb(), 200, None),
}


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.threat("N36-N37", "N40")
async def test_a_flood_is_cut_at_once_and_in_little_memory(poster: Poster, receiver: Receiver, name: str) -> None:
    answer, code, kind = FLOODS[name]
    receiver.answer("/", answer, status(201))
    with trio.fail_after(10):
        await poster.post(receiver.url("/warm"))
        tracemalloc.start()
        try:
            outcome = await poster.post(receiver.url())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (outcome.status_code, outcome.error_kind) == (code, kind)
        assert code is None or outcome.response_truncated
        assert len(outcome.response_body.encode("latin-1", "replace")) <= 4096
        assert outcome.duration_ms < 350  # not by the deadline
        assert peak < 1_500_000  # the receiver's own blocks included
        assert (await poster.post(receiver.url())).status_code == 201


BODIES: dict[str, tuple[bytes, str]] = {
    "less than was announced": (b"Content-Length: 10\r\n\r\nhalf", "half"),
    "a broken chunk": (b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nXYZ\r\n", "half"),
    "no last chunk": (b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "half"),
}


@pytest.mark.parametrize("end", [answers.close, answers.reset], ids=["closed", "reset"])
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.threat("N44")
async def test_after_a_complete_head_a_broken_body_changes_nothing_but_truncated(
    poster: Poster, receiver: Receiver, name: str, end: Callable[[bytes], Answer]
) -> None:
    data, body = BODIES[name]
    receiver.answer("/", end(b"HTTP/1.1 202 Fine\r\n" + data), status(200))
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url())
        assert (outcome.status_code, outcome.error, outcome.response_body) == (202, None, body)
        assert outcome.response_truncated
        assert (await poster.post(receiver.url())).status_code == 200


@pytest.mark.threat("N38", "N44")
async def test_a_body_that_drips_is_read_until_the_deadline_and_the_status_stands(
    poster: Poster, receiver: Receiver
) -> None:
    receiver.answer("/", answers.drip_body(), status(201))
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url())
        assert (outcome.status_code, outcome.error_kind, outcome.response_truncated) == (200, None, True)
        assert set(outcome.response_body) == {"x"}
        assert 400 <= outcome.duration_ms < 700
        await receiver.wait_for_open(0)
        assert (await poster.post(receiver.url())).status_code == 201


STRAYS: dict[str, bytes] = {
    "a second answer": OK + b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n",
    "a second answer after a length of zero": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" + OK,
    "a body with 204": b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello",
    "garbage": OK + b"garbage",
    "garbage after close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nokgarbage",
    "an empty line": OK + b"\r\n",
    "half a status line": OK + b"HTTP/1.1 4",
}


@pytest.mark.parametrize("name", STRAYS)
async def test_bytes_behind_an_answer_never_answer_the_next_request(
    poster: Poster, receiver: Receiver, name: str
) -> None:
    receiver.answer("/", raw(STRAYS[name]), status(201))
    with trio.fail_after(5):
        assert (await poster.post(receiver.url())).status_code in {200, 204}
        assert (await poster.post(receiver.url())).status_code == 201


async def test_bytes_that_come_later_never_answer_the_next_request(poster: Poster) -> None:
    """An answer, and some time after it, unasked, another one on the idle connection."""
    sent = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(OK)
        await trio.sleep(0.02)
        await stream.send_all(b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n")
        sent.set()
        if not await stream.receive_some():
            return

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            listener, *_ = await nursery.start(trio.serve_tcp, serve, 0)
            url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
            assert (await poster.post(url)).status_code == 200
            await sent.wait()
            assert (await poster.post(url)).status_code == 200
            nursery.cancel_scope.cancel()


@pytest.mark.threat("N42")
async def test_what_a_hostile_answer_carries_is_stored_printable(poster: Poster, receiver: Receiver) -> None:
    head = b"HTTP/1.1 200 \x1b[31mOK\xff\r\nX-Bytes: a\x80\xff\xad\xe9\tb\r\nRetry-After: \xe9\x9b\r\n"
    receiver.answer_all(raw(head + b"Content-Length: 9\r\n\r\na\0b\xff\xfe\xc3\xa9\x1b."))
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url())
    assert outcome.status_code == 200
    assert dict(outcome.response_headers)["X-Bytes"] == "a?ÿ?é?b"
    assert outcome.retry_after == "é?"
    assert outcome.response_body == "a\ufffdb\ufffd\ufffdé\x1b."


async def test_a_body_cut_inside_a_character_ends_before_it(poster: Poster, receiver: Receiver) -> None:
    receiver.answer_all(status(200, b"x" + "é".encode() * 4000))
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url())
    assert outcome.response_body == "x" + "é" * 2047
    assert outcome.response_truncated


async def test_a_body_of_just_4_kib_is_whole(poster: Poster, receiver: Receiver) -> None:
    receiver.answer_all(status(200, b"x" * 4096))
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url())
    assert (outcome.response_body, outcome.response_truncated) == ("x" * 4096, False)


async def test_stored_headers_are_few_and_small(poster: Poster, receiver: Receiver) -> None:
    receiver.answer_all(status(200, headers={f"X-{n}": "v" * 300 for n in range(90)} | {"Retry-After": "9" * 3000}))
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url())
    assert sum(len(name) + len(value) for name, value in outcome.response_headers) <= 4096
    assert len(outcome.response_headers) >= 10
    assert outcome.retry_after == "9" * 1024


async def test_hostile_receivers_together_do_not_delay_an_honest_one(poster: Poster, receiver: Receiver) -> None:
    bad = [*TIMEOUTS.values(), *(answer for answer, _, _ in FLOODS.values()), answers.deaf(), answers.drip_body()]
    for n, answer in enumerate(bad * 4):
        receiver.answer(f"/bad/{n}", answer)
    with trio.fail_after(20):
        async with open_receiver() as honest, trio.open_nursery() as nursery:
            for n in range(len(bad) * 4):
                nursery.start_soon(poster.post, receiver.url(f"/bad/{n}"))
            await receiver.wait_for(len(bad) * 2)
            outcomes = [await poster.post(honest.url()) for _ in range(10)]
    assert {outcome.status_code for outcome in outcomes} == {200}
