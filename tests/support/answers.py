"""What a test's receiver may do with a request: honest answers, and what hostile or broken ones do."""

from __future__ import annotations

import gzip
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


@dataclass(frozen=True, slots=True)
class Answer:
    """`play` does something with the connection after a request was read; True means that the next may be read.

    Without `reads_body` it is played as soon as the request's head is there, and the body stays unread.
    """

    name: str
    play: Callable[[Stream], Awaitable[bool]]
    reads_body: bool = True


def status(
    code: int,
    body: bytes = b"ok",
    headers: Mapping[str, str] | None = None,
    *,
    delay_s: float = 0.0,
    close: bool = False,
) -> Answer:
    """An ordinary answer; `close` announces and does it."""

    async def play(stream: Stream) -> bool:
        await trio.sleep(delay_s)
        lines = [f"HTTP/1.1 {code} Whatever", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        if code not in {204, 304}:
            lines.append(f"Content-Length: {len(body)}")
        if close:
            lines.append("Connection: close")
        await stream.send_all("\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if code in {204, 304} else body))
        return not close

    return Answer(f"{code}", play)


def redirect(location: str, code: int = 302) -> Answer:
    return status(code, b"", {"Location": location})


def raw(data: bytes, *, keep: bool = True) -> Answer:
    """These bytes in one piece, and then, unless `keep`, the end."""

    async def play(stream: Stream) -> bool:
        await stream.send_all(data)
        return keep

    return Answer("raw", play)


def hang() -> Answer:
    """Nothing at all, for as long as the client stays."""

    async def play(stream: Stream) -> bool:
        await stream.receive_some()
        return False

    return Answer("hang", play)


def deaf() -> Answer:
    """Reads the head and never anything more."""

    async def play(stream: Stream) -> bool:
        await trio.sleep_forever()
        return False

    return Answer("deaf", play, reads_body=False)


def early(data: bytes) -> Answer:
    """`data` before the body was read, and then nothing: the client's bytes wait."""

    async def play(stream: Stream) -> bool:
        await stream.send_all(data)
        await trio.sleep_forever()
        return False

    return Answer("early", play, reads_body=False)


def drip(data: bytes, interval_s: float = 0.02) -> Answer:
    """One byte at a time, for ever: after the end the last one is repeated."""

    async def play(stream: Stream) -> bool:
        position = 0
        while True:
            await stream.send_all(data[position : position + 1] or data[-1:])
            position += 1
            await trio.sleep(interval_s)

    return Answer("drip", play)


def drip_head() -> Answer:
    return drip(b"HTTP/1.1 200 OK\r\nX-Slow: aaaa")


def drip_body(code: int = 200) -> Answer:
    return drip_after(f"HTTP/1.1 {code} OK\r\nContent-Length: 100000\r\n\r\n".encode("ascii"))


def drip_after(head: bytes, interval_s: float = 0.02) -> Answer:
    """`head` at once, then a letter now and then."""

    async def play(stream: Stream) -> bool:
        await stream.send_all(head)
        while True:
            await trio.sleep(interval_s)
            await stream.send_all(b"x")

    return Answer("drip after head", play)


def endless(head: bytes, block: bytes) -> Answer:
    """`head`, then `block` again and again as fast as the client takes it."""

    async def play(stream: Stream) -> bool:
        await stream.send_all(head)
        while True:
            await stream.send_all(block)

    return Answer("endless", play)


def huge_body(code: int = 200, announced_bytes: int = 10_000_000_000) -> Answer:
    return endless(f"HTTP/1.1 {code} OK\r\nContent-Length: {announced_bytes}\r\n\r\n".encode("ascii"), b"x" * 65536)


def endless_headers() -> Answer:
    return endless(b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"y" * 1000 + b"\r\n")


def interim_flood() -> Answer:
    return endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def gzip_bomb(unpacked_bytes: int = 50_000_000) -> Answer:
    """An honest length, a body that is 1,000 times larger unpacked."""
    body = gzip.compress(b"\0" * unpacked_bytes)
    return status(200, body, {"Content-Encoding": "gzip"})


def two_at_once() -> Answer:
    """A second answer, that nobody asked for, in the same segment."""
    stray = b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n"
    return raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + stray)


def close(data: bytes = b"") -> Answer:
    """`data` and then an orderly end."""
    return raw(data, keep=False)


def reset(data: bytes = b"") -> Answer:
    """`data` and then a RST."""

    async def play(stream: Stream) -> bool:
        if data:
            await stream.send_all(data)
            await trio.sleep(0.01)  # a RST would overtake what the client has not read yet
        transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.socket.close()
        return False

    return Answer("reset", play)


def then_close(answer: Answer) -> Answer:
    """`answer`, and an end that it did not announce: the client finds a dead connection when it comes again."""

    async def play(stream: Stream) -> bool:
        await answer.play(stream)
        return False

    return Answer(f"{answer.name}, then close", play)
