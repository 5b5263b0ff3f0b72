"""What stands between Hypercorn and Quart: it refuses what Quart would stumble over, and ends exchanges cleanly.

It also tells the daemon while somebody waits for an answer.

Two faults of theirs are mended here. Quart-Trio takes a target without a path for an internal error. And Hypercorn
tells the application of the end of an exchange while it is itself still in the application's task, whereupon Quart-Trio
cancels that task: a connection whose request was answered before its body had come was then neither closed nor used
again, and the client's next request on it got no answer.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Final

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, ASGISendEvent, HTTPScope, Scope
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection

from api.errors import MEDIA_TYPE, Problem

Asgi = Callable[[Scope, ASGIReceiveCallable, ASGISendCallable], Awaitable[None]]

UNREAD_BODY_S: Final = 2.0
"""How long the rest of a body may come after its request was answered. Then the connection can be used again; closing
it at once would also lose the answer, where the peer is still sending."""
_EVENTS: Final = (b"content-type", b"text/event-stream")
_ABSOLUTE: Final = re.compile(r"https?://[^/?#]*(?P<path>/.*)", re.IGNORECASE | re.DOTALL)
"""RFC 9112, section 3.2.2: a server has to take the form that is meant for proxies, too."""


def install(app: QuartTrio, guest: Callable[[], AbstractContextManager[None]]) -> None:
    """Put the gate before an application."""
    app.asgi_http_class = _InOneTask
    app.asgi_app = Gate(app.asgi_app, guest)


class _InOneTask(TrioASGIHTTPConnection):
    """Quart-Trio's, but a request is answered in the task that is there already, and not a turn of the loop later."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        request = self._create_request_from_scope(send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.handle_messages, nursery, request, receive)
            await self.handle_request(nursery, request, send)


class Gate:
    """Wraps an ASGI application. `guest` is entered for as long as somebody waits for an answer."""

    def __init__(self, inner: Asgi, guest: Callable[[], AbstractContextManager[None]]) -> None:
        self._inner = inner
        self._guest = guest

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """One request, or the server's start and stop."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
        elif (problem := _fault(scope)) is not None:
            await _answer(send, problem)
        else:
            with ExitStack() as stay:
                stay.enter_context(self._guest())
                exchange = _Exchange(receive, send, stay)
                await self._inner(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer. `stay` is closed early where an answer goes on for as long as its reader likes."""

    def __init__(self, receive: ASGIReceiveCallable, send: ASGISendCallable, stay: ExitStack) -> None:
        self._receive = receive
        self._send = send
        self._stay = stay
        self._request_ended = trio.Event()
        self._answering = False
        self._answered = False

    async def receive(self) -> ASGIReceiveEvent:
        """The next message, but for a disconnect that is only our own answer's end."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            if self._answered:
                await trio.sleep_forever()  # the application ends by itself, when its last send returns
            self._request_ended.set()
        elif message["type"] == "http.request":
            if not message["more_body"]:
                self._request_ended.set()
            if self._answering:  # nobody wants it any more, and Quart would keep it
                message["body"] = b""
        return message

    async def send(self, message: ASGISendEvent) -> None:
        """Pass a message on; the last one, which is empty, only when the request has been read to its end."""
        self._answering = True
        if message["type"] == "http.response.start" and _EVENTS in message["headers"]:
            self._stay.close()
        if message["type"] == "http.response.body" and not message["more_body"]:
            if not self._request_ended.is_set():  # else it would still be a turn of the event loop
                with trio.move_on_after(UNREAD_BODY_S):
                    await self._request_ended.wait()
            self._answered = True
        await self._send(message)


def _fault(scope: HTTPScope) -> Problem | None:
    """Why a request cannot be dealt with. Puts the path of an absolute target in its place."""
    if not scope["path"].startswith("/"):
        absolute = _ABSOLUTE.fullmatch(scope["path"])
        if absolute is None:
            return Problem(400, "bad_request", "The request's target is not a path.")
        scope["path"] = absolute["path"]
    names = {name.lower() for name, _ in scope["headers"]}
    if {b"content-length", b"transfer-encoding"} <= names:  # RFC 9112, section 6.1: somebody may be smuggling
        return Problem(400, "bad_request", "Content-Length and Transfer-Encoding exclude each other.")
    return None


async def _answer(send: ASGISendCallable, problem: Problem) -> None:
    body = problem.body()
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
