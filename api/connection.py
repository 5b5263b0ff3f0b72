"""One client's connection: Hypercorn's HTTP/1.1 between its socket and the application, with every wait bounded.

Hypercorn's own connection waits without a limit for a peer who does not read what it asked for, changes to HTTP/2 for
whoever asks, and answers what is no HTTP without a word. Its protocol class is kept, this stands in for the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, H11SendableEvent
from hypercorn.utils import parse_socket_addr  # pyright: ignore[reportUnknownVariableType] a bare tuple

from api.errors import MEDIA_TYPE, problem_of
from daemon.store.waiting import Turns

RECEIVE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What strangers may take. Seconds, but for `connections`."""

    connections: int = 512
    """Places for all clients. A request holds up to 1 MiB of body: half a gigabyte is the most that they can fill."""
    head_s: float = 10.0
    """How long the first request's head may take to come, counted from the connect."""
    idle_s: float = 15.0
    """How long a connection may be idle between two requests; the next one's head has to be there by then."""
    send_s: float = 20.0
    """How long the peer may leave an answer unread, or read it drop by drop."""
    linger_s: float = 1.0
    """How long we go on reading, and throwing away, after the last answer: to close on unread bytes would reset the
    connection, and the answer with it."""
    last_s: float = 0.5
    """At a stop: how long a connection between two requests still gets for one that is on its way. Its answer says that
    it is the last one, so that no client finds its connection closed amid a request."""


class Protocol(H11Protocol):
    """HTTP/1.1 and nothing else, with a problem document for what is not HTTP, and an answer's head with its body."""

    given_up = False
    """Whether an answer broke off. What the application still says is then for nobody."""
    _head = b""
    """Of an answer whose body is about to follow."""

    async def stream_send(self, event: StreamEvent) -> None:
        """Pass on what the application says."""
        if not self.given_up:
            await super().stream_send(event)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """In one write where the length is known. Any other body may take its time: the head goes first."""
        try:
            data = self._head + (self.connection.send(event) or b"")
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        waits = isinstance(event, h11.Response) and any(name == b"content-length" for name, _ in event.headers)
        self._head = data if waits else b""
        if data and not waits:
            await self.send(RawData(data))

    async def _check_protocol(self, event: h11.Request) -> None:
        """No change to HTTP/2."""

    async def _create_stream(self, request: h11.Request) -> None:
        """No change to websockets or anything else either: RFC 9110, section 7.8, lets a server ignore the wish."""
        fields = [(name, value) for name, value in request.headers if name != b"upgrade"]
        if len(fields) < len(request.headers):
            request = h11.Request(
                method=request.method, target=request.target, headers=fields, http_version=request.http_version
            )
        await super()._create_stream(request)

    async def _send_error_response(self, status_code: int) -> None:
        body = problem_of(status_code).body()
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())

    async def refuse_slow_head(self) -> None:
        """408 where a part of a request's head has come; who has sent nothing is owed nothing (RFC 9110, 15.5.9)."""
        if self.connection.our_state is h11.IDLE and self.connection.trailing_data[0]:
            await self._send_error_response(408)

    @property
    def awaits_client(self) -> bool:
        """Whether it is the client's turn: a request's head, or the rest of its body, has not come yet."""
        return self.connection.their_state in {h11.IDLE, h11.SEND_BODY}


class Connection:
    """Serves one client until it leaves, is too slow, or is told to go."""

    def __init__(
        self, stream: trio.SocketStream, app: AppWrapper, config: Config, context: WorkerContext, limits: Limits
    ) -> None:
        self._stream = stream
        self._app = app
        self._config = config
        self._context = context
        self._limits = limits
        self._idle_s = limits.idle_s
        self._writing = Turns()
        self._reading = trio.CancelScope()
        self._protocol: Protocol | None = None
        self._answered_last = False
        self._told_to_go = False
        self._due = trio.current_time() + limits.head_s
        self.waiting_since = trio.current_time()
        """Since when the head or, after it, the body of the present request is waited for."""

    @property
    def can_go(self) -> bool:
        """Whether it may be closed to make room: nothing of ours is under way."""
        idle = self._protocol is None or self._answered_last or self._protocol.awaits_client
        return idle and not self._told_to_go

    def close(self) -> None:
        """End it now."""
        self._told_to_go = True
        self._expire_at(-math.inf)

    def close_soon(self, within_s: float) -> None:
        """Be idle no longer than this from now on, and end then."""
        self._idle_s = within_s
        if self.can_go:
            self._expire_at(min(self._due, trio.current_time() + within_s))

    async def run(self) -> None:
        """Until the end of the connection, which is closed then."""
        sock = self._stream.socket
        try:
            client, server = sock.getpeername(), sock.getsockname()
            async with TaskGroup() as tasks:
                self._protocol = Protocol(
                    self._app,
                    self._config,
                    self._context,
                    tasks,
                    ConnectionState({}),
                    ssl=False,
                    client=parse_socket_addr(sock.family, client),
                    server=parse_socket_addr(sock.family, server),
                    send=self._send,
                )
                await self._read(self._protocol)
        except OSError:
            pass  # it was gone before it began
        finally:
            sock.close()

    async def _read(self, protocol: Protocol) -> None:
        while data := await self._receive():
            if not self._answered_last:  # else it is only read so that the close is no reset
                await protocol.handle(RawData(data))
        if self._reading.cancelled_caught and not self._answered_last and not self._told_to_go:
            await protocol.refuse_slow_head()
        await protocol.handle(Closed())

    async def _receive(self) -> bytes:
        """What comes next; nothing at the end, and when the time for it is over."""
        with trio.CancelScope(deadline=self._due) as self._reading:
            try:
                return bytes(await self._stream.receive_some(RECEIVE_BYTES))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return b""
        return b""

    def _expire_at(self, due: float) -> None:
        self._due = self._reading.deadline = due

    # -- what the protocol wants, from the reading task and from the application's ------------------------------------

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Updated):
            self.waiting_since = trio.current_time()
            self._expire_at(self.waiting_since + self._idle_s if event.idle else math.inf)
        elif isinstance(event, Closed):
            await self._finish()

    async def _write(self, data: bytes) -> None:
        sent = False
        try:
            with trio.move_on_after(self._limits.send_s):
                async with self._writing:
                    await self._stream.send_all(data)
                    sent = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            if not sent:  # also where we were cancelled: half an answer leaves nothing to go on with
                self._give_up()
        if not sent and self._protocol is not None:
            await self._protocol.handle(Closed())

    async def _finish(self) -> None:
        self._answered_last = True
        self._expire_at(trio.current_time() + self._limits.linger_s)
        async with self._writing:
            try:
                await self._stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._give_up()
        if self._protocol is not None:
            await self._protocol.handle(Closed())

    def _give_up(self) -> None:
        self._stream.socket.close()
        if self._protocol is not None:
            self._protocol.given_up = True
