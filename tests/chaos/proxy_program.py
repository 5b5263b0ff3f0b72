"""Run as a program of its own: a TCP proxy before Postgres that delays, swallows, cuts, and loses answers.

Standard output has its port. Standard input takes one command a line, its words parted by tabs; each is answered:

    pass            forward as it comes (so it begins)
    delay 0.05      forward everything so many seconds later, in each direction
    hold            forward nothing and close nothing: a peer that fell silent
    cut             reset every connection; new ones are served
    refuse          reset every connection, and each new one as it comes
    lose NAME 1     of the next transactions of connections with that application_name: let the server finish so many,
                    drop its answer and reset the connection; the answer to this command is how many were lost so far
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Final

CHUNK: Final = 65_536
QUERIES: Final = (b"Q", b"P", b"B")
"""A packet that asks something begins with Query, Parse or Bind."""
NO_LINGER: Final = struct.pack("ii", 1, 0)
IDLE: Final = b"Z\x00\x00\x00\x05I"
"""ReadyForQuery outside of a transaction: whatever was asked is committed or rolled back."""


@dataclass(eq=False)
class Link:
    """One connection of a client, and the one to the server that belongs to it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    name: str = ""
    asked: int = 0

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
    links: set[Link] = field(default_factory=set[Link])
    passing: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(*self.to)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, to_server)
        if self.mode == "refuse":
            link.reset()
            return
        self.links.add(link)
        pumps = [
            asyncio.create_task(self.pump(link, reader, to_server, from_client=True)),
            asyncio.create_task(self.pump(link, from_server, writer, from_client=False)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        self.links.discard(link)
        for end in (writer, to_server):
            end.close()

    async def pump(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool
    ) -> None:
        """Forward one direction until it ends. With a delay the chunks keep their distances."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1000)
        writing = asyncio.create_task(self.forward(queue, writer))
        try:
            while data := await reader.read(CHUNK):
                if self.is_to_be_lost(link, data, from_client=from_client):
                    self.lost += 1
                    self.to_lose -= 1
                    link.reset()
                    return
                await queue.put((time.monotonic() + self.delay_s, data))
            await queue.put((0.0, b""))
            await writing
        except ConnectionError:
            pass
        finally:
            writing.cancel()

    async def forward(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while (item := await queue.get())[1]:
                await asyncio.sleep(max(item[0] - time.monotonic(), 0))
                await self.passing.wait()
                writer.write(item[1])
                await writer.drain()

    def is_to_be_lost(self, link: Link, data: bytes, *, from_client: bool) -> bool:
        """Whether this is the end of the server's answer to something that was asked since the command came."""
        if from_client:
            if not link.name and b"application_name\x00" in data:
                link.name = data.split(b"application_name\x00", 1)[1].split(b"\x00", 1)[0].decode()
            if data[:1] in QUERIES:
                link.asked = self.to_lose
            return False
        return self.to_lose > 0 and link.asked > 0 and link.name == self.losing and data.endswith(IDLE)

    def obey(self, words: list[str]) -> str:
        if words[0] == "lose":
            self.losing, self.to_lose = words[1], int(words[2])
            return str(self.lost)
        self.mode = words[0]
        self.delay_s = float(words[1]) if words[0] == "delay" else 0.0
        if words[0] == "hold":
            self.passing.clear()
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
        say(proxy.obey(line.rstrip("\n").split("\t")))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
