"""One connection by itself, where a server would need luck to meet the case."""

from __future__ import annotations

import logging

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from api.connection import Connection, Limits


async def test_a_cancel_just_as_an_answer_begins_is_a_cancel_and_no_second_answer() -> None:
    config = Config()
    config.errorlog = logging.getLogger("hypercorn.error")  # else it sets levels that outlive this test
    with trio.fail_after(5), trio.CancelScope() as cancelled:

        async def app(_scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            cancelled.cancel()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        ours, theirs = trio.socket.socketpair()
        with theirs:
            await theirs.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            stream = trio.SocketStream(ours)
            await Connection(stream, ASGIWrapper(app), config, WorkerContext(None), Limits()).run()
    assert cancelled.cancelled_caught
