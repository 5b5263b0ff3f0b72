"""One connection by itself, where a server would need luck to meet the case."""

from __future__ import annotations

import logging
import socket

import pytest
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from api.connection import Connection, Limits


def config() -> Config:
    made = Config()
    made.errorlog = logging.getLogger("hypercorn.error")  # else it sets levels that outlive this test
    return made


async def test_a_cancel_just_as_an_answer_begins_is_a_cancel_and_no_second_answer() -> None:
    with trio.fail_after(5), trio.CancelScope() as cancelled:

        async def app(_scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            cancelled.cancel()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        ours, theirs = trio.socket.socketpair()
        with theirs:
            await theirs.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            stream = trio.SocketStream(ours)
            await Connection(stream, ASGIWrapper(app), config(), WorkerContext(None), Limits()).run()
    assert cancelled.cancelled_caught


@pytest.mark.parametrize("length", [b"2", None])
async def test_a_head_goes_with_its_body_where_the_length_is_known_and_at_once_elsewhere(length: bytes | None) -> None:
    ours, theirs = trio.socket.socketpair()
    before_body: bytes | None = None

    async def app(_scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        nonlocal before_body
        headers = [] if length is None else [(b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with trio.move_on_after(0.1):
            before_body = await theirs.recv(10_000)
        await send({"type": "http.response.body", "body": b"{}", "more_body": False})

    with trio.fail_after(5), theirs:
        await theirs.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        theirs.shutdown(socket.SHUT_WR)
        await Connection(trio.SocketStream(ours), ASGIWrapper(app), config(), WorkerContext(None), Limits()).run()
        rest = b"".join([part async for part in trio.SocketStream(theirs)])
    if length is None:
        assert before_body is not None
        assert before_body.startswith(b"HTTP/1.1 200")
        assert b"{}" in rest
    else:
        assert before_body is None
        assert rest.startswith(b"HTTP/1.1 200")
        assert rest.endswith(b"\r\n\r\n{}")
