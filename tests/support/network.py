"""A network between two programs of a test: it can be cut, and it can fall silent without a word."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import trio


def _open() -> trio.Event:
    gate = trio.Event()
    gate.set()
    return gate


@dataclass(eq=False, slots=True)
class _Link:
    """A client's connection, the server's that belongs to it, and what has to be open for anything to pass."""

    client: trio.SocketStream
    server: trio.SocketStream
    gate: trio.Event = field(default_factory=_open)


class Network:
    """Made by `network_to`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._links: set[_Link] = set()
        self._sound = _open()
        self._down = False
        self.tried = 0
        """Connections that came, whatever became of them."""

    def cut(self) -> None:
        """Close every connection, and each new one as it comes."""
        self._down = True
        for link in self._links:
            link.client.socket.close()
            link.server.socket.close()

    def fall_silent(self) -> None:
        """Forward nothing and read nothing, close nothing; who connects anew waits."""
        self._sound = trio.Event()
        for link in self._links:
            link.gate = trio.Event()

    def come_back(self, *, forgetful: bool = False) -> None:
        """Forward again, what was sent meanwhile first.

        Where it is `forgetful`, old connections stay silent for ever, as with a router that has lost its table.
        """
        self._down = False
        self._sound.set()
        for link in self._links:
            if not forgetful:
                link.gate.set()

    async def serve(self, client: trio.SocketStream) -> None:
        """One connection of a client."""
        self.tried += 1
        if self._down:
            return
        await self._sound.wait()
        async with client, await trio.open_tcp_stream("127.0.0.1", self._port) as server:
            link = _Link(client, server)
            self._links.add(link)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, link, client, server, nursery.cancel_scope)
                    nursery.start_soon(self._pump, link, server, client, nursery.cancel_scope)
            finally:
                self._links.remove(link)

    @staticmethod
    async def _pump(link: _Link, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await link.gate.wait()
                await sink.send_all(data)
        await link.gate.wait()  # nobody hears of an end either
        scope.cancel()


@asynccontextmanager
async def network_to(port: int) -> AsyncGenerator[tuple[Network, str]]:
    """A network to a port of this machine, and the URL by which its other end is reached."""
    network = Network(port)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, network.serve, 0, host="127.0.0.1"))
        yield network, f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
