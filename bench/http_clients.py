"""Run as a program: so many HTTP clients that send one request again and again, cheaply, on connections that are kept.

Standard input is one JSON object (Plan), standard output another (Done). An answer of another status ends it all.
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import subprocess
import sys
import time
from typing import Final

import msgspec

CHUNK_BYTES: Final = 65536
LIMIT_S: Final = 300.0
_HEAD: Final = re.compile(rb"HTTP/1\.1 (\d{3}) .*?\r\ncontent-length: *(\d+)\r\n.*?\r\n\r\n", re.DOTALL | re.IGNORECASE)


class Plan(msgspec.Struct, frozen=True):
    """`requests` in all, over `clients` connections to 127.0.0.1:`port`, the `bodies` in turns, JSON to `path`."""

    port: int
    path: str
    key: str
    bodies: list[str]
    requests: int
    clients: int
    status: int


class Done(msgspec.Struct, frozen=True):
    """What it took. `client_us` is the CPU of this process for each request."""

    requests: int
    seconds: float
    client_us: float


def run(plan: Plan) -> Done:
    """In a process of its own. Raises CalledProcessError where an answer was another than expected."""
    command = [sys.executable, "-m", "bench.http_clients"]
    text = msgspec.json.encode(plan)
    return msgspec.json.decode(
        subprocess.run(command, input=text, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True).stdout, type=Done
    )


class Client:
    """One connection with one request on its way."""

    def __init__(self, port: int, status: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._status = status
        self._came = b""

    def is_answered(self) -> bool:
        """Read what there is; whether the answer is complete with it."""
        data = self.socket.recv(CHUNK_BYTES)
        if not data:
            raise ConnectionError("the server hung up")
        self._came += data
        head = _HEAD.match(self._came)
        if head is None or len(self._came) < head.end() + int(head[2]):
            return False
        if head[1] != self._status:
            raise ValueError(self._came.decode(errors="replace"))
        self._came = self._came[head.end() + int(head[2]) :]
        return True


def load(plan: Plan) -> Done:
    """All requests; each client sends its next one when it has the answer to the last."""
    bytes_of = [_request(plan, body) for body in plan.bodies]
    sent = answered = 0
    with selectors.DefaultSelector() as selector:
        began, cpu_before = time.monotonic(), os.times()
        for _ in range(min(plan.clients, plan.requests)):
            client = Client(plan.port, str(plan.status).encode())
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.socket.sendall(bytes_of[sent % len(bytes_of)])
            sent += 1
        while answered < plan.requests:
            for key, _ in selector.select():
                client: Client = key.data
                if not client.is_answered():
                    continue
                answered += 1
                if sent < plan.requests:
                    client.socket.sendall(bytes_of[sent % len(bytes_of)])
                    sent += 1
    seconds, cpu_after = time.monotonic() - began, os.times()
    cpu_s = cpu_after.user + cpu_after.system - cpu_before.user - cpu_before.system
    return Done(answered, seconds, cpu_s / answered * 1e6)


def _request(plan: Plan, body: str) -> bytes:
    head = f"POST {plan.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {plan.key}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode()


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(load(msgspec.json.decode(sys.stdin.buffer.read(), type=Plan))))
