"""Run as a program of its own: a TCP proxy before Postgres that delays, swallows, cuts, loses answers, and meddles.

Standard output has its port. Standard input takes one command a line, its words parted by tabs; each is answered:

    pass            forward as it comes (so it begins)
    delay 0.05      forward everything so many seconds later, in each direction
    hold            forward nothing and close nothing: a peer that fell silent
    forget          forward as it comes, but nothing of the connections there are, which only the server sees end: a
                    router that has lost its table, an address that a promoted standby took over
    cut             reset every connection; new ones are served
    refuse          reset every connection, and each new one as it comes
    lose NAME 1     of the next transactions of connections with that application_name: let the server finish so many,
                    drop its answer and reset the connection; the answer to this command is how many were lost so far
    inject NAME SQL run a statement on the newest connection with that application_name, at a moment when its client
                    has asked nothing, and keep its answer from the client; answered when the server has answered
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final

CHUNK: Final = 65_536
QUERIES: Final = (b"Q", b"P", b"B")
"""A packet that asks something begins with Query, Parse or Bind."""
NO_LINGER: Final = struct.pack("ii", 1, 0)
IDLE: Final = b"Z\x00\x00\x00\x05I"
"""ReadyForQuery outside of a transaction: whatever was asked is committed or rolled back."""
READY: Final = b"Z"
NOTIFICATION: Final = b"A"
NO_TLS: Final = b"N"
"""The server's word before its first message, to a client that would rather have TLS."""
INJECT_S: Final = 10.0
LOOK_S: Final = 0.001


@dataclass(eq=False)
class Link:
    """One connection of a client, and the one to the server that belongs to it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    name: str = ""
    asked: int = 0
    is_idle: bool = False
    """Whether the client has had the answer to all that it asked. It waits for each before it asks anew."""
    injecting: bool = False
    free: asyncio.Event = field(default_factory=asyncio.Event)
    """While this is not set, nothing of the client goes to the server."""
    known: asyncio.Event = field(default_factory=asyncio.Event)
    """While this is not set, nothing goes either way."""
    rest: bytes = b""
    """The beginning of a message whose end has not come yet."""

    def note(self, data: bytes) -> None:
        """The client says this."""
        self.is_idle = False
        if not self.name and b"application_name\x00" in data:
            self.name = data.split(b"application_name\x00", 1)[1].split(b"\x00", 1)[0].decode()

    def inject(self, statement: str) -> None:
        """Ask the server in the client's place."""
        self.free.clear()
        self.injecting = True
        text = statement.encode() + b"\x00"
        self.server.write(b"Q" + struct.pack("!i", len(text) + 4) + text)

    def hear(self, data: bytes) -> bytes:
        """Of what the server says, that which is for the client: all but the answer to what was injected."""
        if not self.name and data == NO_TLS:
            return data
        return b"".join(message for message in self.messages(data) if self.is_for_client(message))

    def messages(self, data: bytes) -> Generator[bytes]:
        """Those that are complete: a letter, the length of the rest in four bytes, the rest."""
        data, begin = self.rest + data, 0
        while len(data) >= begin + 5 and len(data) >= (end := begin + 1 + int.from_bytes(data[begin + 1 : begin + 5])):
            yield data[begin:end]
            begin = end
        self.rest = data[begin:]

    def is_for_client(self, message: bytes) -> bool:
        kind = message[:1]
        if not self.injecting:
            if kind == READY:
                self.is_idle = message == IDLE
            return True
        if kind == READY:
            self.injecting = False
            self.free.set()
        return kind == NOTIFICATION

    def reset(self) -> None:
        for writer in (self.client, self.server):
            connection: socket.socket = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            writer.transport.abort()


@dataclass
class Proxy:
    """`to` is the server's host and port."""

    to: tuple[str, int]
    mode: str = "pass"
    delay_s: float = 0.0
    losing: str = ""
    to_lose: int = 0
    lost: int = 0
    links: list[Link] = field(default_factory=list[Link])
    passing: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(*self.to)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, to_server)
        link.free.set()
        link.known.set()
        if self.mode == "refuse":
            link.reset()
            return
        self.links.append(link)
        pumps = [
            asyncio.create_task(self.pump(link, reader, to_server, from_client=True)),
            asyncio.create_task(self.pump(link, from_server, writer, from_client=False)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for gate in (self.passing, link.known):
            await gate.wait()  # nobody hears of an end either
        for pump in pumps:
            pump.cancel()
        self.links.remove(link)
        for end in (writer, to_server):
            end.close()

    async def pump(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool
    ) -> None:
        """Forward one direction until it ends. With a delay the chunks keep their distances."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1000)
        gates = (self.passing, link.known, link.free) if from_client else (self.passing, link.known)
        writing = asyncio.create_task(self.forward(queue, writer, gates))
        try:
            while data := await reader.read(CHUNK):
                if from_client:
                    link.note(data)
                if self.is_to_be_lost(link, data, from_client=from_client):
                    self.lost += 1
                    self.to_lose -= 1
                    link.reset()
                    return
                if said := data if from_client else link.hear(data):
                    await queue.put((time.monotonic() + self.delay_s, said))
            await queue.put((0.0, b""))
            await writing
        except ConnectionError:
            pass
        finally:
            writing.cancel()

    async def forward(
        self,
        queue: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        gates: tuple[asyncio.Event, ...],
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while (item := await queue.get())[1]:
                await asyncio.sleep(max(item[0] - time.monotonic(), 0))
                for gate in gates:
                    await gate.wait()
                writer.write(item[1])
                await writer.drain()

    def is_to_be_lost(self, link: Link, data: bytes, *, from_client: bool) -> bool:
        """Whether this is the end of the server's answer to something that was asked since the command came."""
        if from_client:
            if data[:1] in QUERIES:
                link.asked = self.to_lose
            return False
        return self.to_lose > 0 and link.asked > 0 and link.name == self.losing and data.endswith(IDLE)

    async def obey(self, words: list[str]) -> str:
        if words[0] == "lose":
            self.losing, self.to_lose = words[1], int(words[2])
            return str(self.lost)
        if words[0] == "inject":
            async with asyncio.timeout(INJECT_S):
                while not (idle := [link for link in self.links if link.name == words[1] and link.is_idle]):
                    await asyncio.sleep(LOOK_S)
                idle[-1].inject(words[2])
                await idle[-1].free.wait()
            return "done"
        self.mode = words[0]
        self.delay_s = float(words[1]) if words[0] == "delay" else 0.0
        if words[0] == "hold":
            self.passing.clear()
        elif words[0] == "forget":
            for link in self.links:
                link.known.clear()
                link.is_idle = False
                link.server.close()  # a server does not keep such sessions for long either
            self.passing.set()
        else:
            self.passing.set()
        if words[0] in {"cut", "refuse"}:
            for link in list(self.links):
                link.reset()
        return "done"


async def main(host: str, port: str) -> None:
    proxy = Proxy((host, int(port)))
    proxy.passing.set()
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, backlog=200)
    say(str(server.sockets[0].getsockname()[1]))
    while line := await asyncio.to_thread(sys.stdin.readline):
        say(await proxy.obey(line.rstrip("\n").split("\t")))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
