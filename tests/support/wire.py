"""HTTP by hand, for what no client library would send."""

from __future__ import annotations

import trio

from tests.support.api import Served


async def answer_to(served: Served, request: bytes, *, within_s: float = 5.0) -> tuple[int, bytes]:
    """Status and body of what comes back for these bytes, read until the server closes or falls silent."""
    with trio.fail_after(within_s):
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        async with stream:
            await stream.send_all(request)
            return await one_answer(stream)


async def one_answer(stream: trio.SocketStream) -> tuple[int, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = await stream.receive_some()
        assert chunk, f"closed after {data!r}"
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields[b"content-length"]):
        body += await stream.receive_some()
    return int(head.split(b" ")[1]), body
