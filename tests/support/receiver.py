"""A customer's endpoint for tests: a real server on loopback, plain or TLS, that answers as it is told and remembers.

```
async with open_receiver() as receiver:
    receiver.answer("/hook", status(500), status(200))   # first 500, then 200 for ever
    ... send to receiver.url("/hook") ...
    first, second = await receiver.wait_for(2)
    assert json.loads(second.body)["id"] == first.headers["webhook-id"]
```
"""

from __future__ import annotations

import ssl
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio

from tests.support.answers import Answer, Stream, status

_MAX_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Received:
    """One complete request. `at` is `trio.current_time()`, `connection` counts from 1, header names are lower case."""

    at: float
    connection: int
    method: str
    path: str
    headers: dict[str, str]
    head: bytes
    body: bytes
    answer: str


class Receiver:
    """Made by `open_receiver`. `received` only grows, in the order in which the requests were complete."""

    def __init__(self, port: int, scheme: str, host: str) -> None:
        self.port = port
        self.host = host
        self.scheme = scheme
        self.received: list[Received] = []
        self.connections = 0
        """Accepted so far, TLS handshakes that failed included."""
        self.open = 0
        """Connections open now."""
        self.handshake_failures: list[str] = []
        self._answers: dict[str, list[Answer]] = {}
        self._default = status(200)
        self._changed = trio.Event()
        self._served: defaultdict[str, int] = defaultdict(int)

    def url(self, path: str = "/") -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{path}"

    def answer(self, path: str, *answers: Answer) -> None:
        """From now on, requests to `path` (without its query) get these answers in turn, the last one for ever."""
        if not answers:
            raise ValueError("no answer given")
        self._answers[path] = list(answers)
        self._served[path] = 0

    def answer_all(self, answer: Answer) -> None:
        """From now on, this is what paths get that have no answers of their own. 200 at first."""
        self._default = answer

    def at(self, path: str) -> list[Received]:
        return [request for request in self.received if request.path.partition("?")[0] == path]

    async def wait_for(self, count: int, path: str | None = None, *, timeout_s: float = 10.0) -> list[Received]:
        """The requests received so far (to `path`), as soon as they are at least `count`."""
        with trio.fail_after(timeout_s):
            while len(found := self.received if path is None else self.at(path)) < count:
                await self._changed.wait()
        return list(found)

    async def wait_for_open(self, count: int, *, timeout_s: float = 10.0) -> None:
        """Wait until exactly `count` connections are open."""
        with trio.fail_after(timeout_s):
            while self.open != count:
                await self._changed.wait()

    async def serve(self, stream: Stream) -> None:
        """One connection, from its first request to its end."""
        self.connections += 1
        number = self.connections
        self.open += 1
        self._ring()
        try:
            # Clients leave when they like: for a receiver that is the end of a connection, not a fault.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                if isinstance(stream, trio.SSLStream) and not await self._handshaken(stream):
                    return
                buffer = bytearray()
                while (request := await self._read(stream, buffer, number)) is not None:
                    answer = self._next_answer(request)
                    self.received.append(request)
                    self._ring()
                    if not await answer.play(stream):
                        break
        finally:
            try:
                with trio.move_on_after(1, shield=True):
                    await trio.aclose_forcefully(stream)
            finally:
                self.open -= 1
                self._ring()

    async def _handshaken(self, stream: trio.SSLStream[trio.SocketStream]) -> bool:
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as e:
            self.handshake_failures.append(str(e.__cause__ or e))
            self._ring()
            return False
        return True

    async def _read(self, stream: Stream, buffer: bytearray, number: int) -> Received | None:
        while (end := buffer.find(b"\r\n\r\n")) < 0:
            if not await _more(stream, buffer) or len(buffer) > _MAX_HEAD_BYTES:
                return None
        head = bytes(buffer[: end + 4])
        request_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, path, _ = request_line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        answer = self._peek(path)
        if answer.reads_body:
            while len(buffer) < end + 4 + length:
                if not await _more(stream, buffer):
                    return None
        body = bytes(buffer[end + 4 : end + 4 + length])
        del buffer[: end + 4 + length]
        return Received(trio.current_time(), number, method, path, headers, head, body, answer.name)

    def _peek(self, path: str) -> Answer:
        name = path.partition("?")[0]
        answers = self._answers.get(name)
        return self._default if answers is None else answers[min(self._served[name], len(answers) - 1)]

    def _next_answer(self, request: Received) -> Answer:
        answer = self._peek(request.path)
        self._served[request.path.partition("?")[0]] += 1
        return answer

    def _ring(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


async def _more(stream: Stream, buffer: bytearray) -> bool:
    data = await stream.receive_some(65536)
    buffer += data
    return bool(data)


@asynccontextmanager
async def open_receiver(
    *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", bind: str | None = None, port: int = 0
) -> AsyncGenerator[Receiver]:
    """A receiver on a free port (or `port`) of `bind`, known as `host` in its URLs. Ends with the block."""
    async with trio.open_nursery() as nursery:
        listener, *_ = await trio.open_tcp_listeners(port, host=bind or host)
        receiver = Receiver(listener.socket.getsockname()[1], "http" if tls is None else "https", host)

        async def serve(stream: trio.SocketStream) -> None:
            await receiver.serve(stream if tls is None else trio.SSLStream(stream, tls, server_side=True))

        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield receiver
        nursery.cancel_scope.cancel()
