"""Run as a program of its own: the endpoints of all customers, on one port, and a book of every request.

The path says how it is answered: `/<name>/<answer>/<milliseconds>`, where the answer is a status or a way to fail:
`flap` (200 or 500), `hang`, `drip` (a byte now and then), `reset`, `hostile` (one of HOSTILE). Standard output has the
port, then a JSON line when a request is complete and another when its answer was handed to the kernel. Standard input
takes a JSON line for each name whose signatures are to be judged, `{"name": …, "secret": …}`, or that answers otherwise
from now on, `{"name": …, "answer": …}`, and has a line when that holds; the program ends with it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import random
import socket
import struct
import sys
import time
from typing import Final

LIMIT: Final = 1 << 20
DRIP_S: Final = 0.5
HOSTILE: Final = (
    (0, b""),
    (0, b"HTTP/1.1 2"),
    (0, b"\x00\xff" * 500),
    (0, b"<html>who are you?</html>\r\n\r\n"),
    (0, b"HTTP/9.9 200 OK\r\n\r\n"),
    (0, b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n"),
    (0, b"HTTP/1.1 100 Continue\r\n\r\n" * 50),
    (0, b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
    (0, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    (0, b"HTTP/1.1 200 OK\r\nName : value\r\n\r\n"),
    (0, b"HTTP/1.1 200 OK\r\nEndless: " + b"a" * 100_000),
    (0, b"HTTP/1.1 200 OK\r\n" + b"Many: x\r\n" * 1000),
    (200, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nshort"),
    (200, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n"),
    (200, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 500 The next one\r\n\r\n"),
    (
        500,
        b"HTTP/1.1 500 No\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\n\x1f\x8b\x08\xff\xff\xff\xff\xff\xff",
    ),
    (302, b"HTTP/1.1 302 There\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"),
    (429, b"HTTP/1.1 429 Later\r\nRetry-After: 99999999999999999999\r\nContent-Length: 0\r\n\r\n"),
    (503, b"HTTP/1.1 503 Later\r\nRetry-After: Thu, 99 Foo 2026\r\nContent-Length: 0\r\n\r\n"),
)
"""What an endpoint may send that means harm, and the status that is in it; 0 where it is no answer. Then it closes."""

secrets: Final[dict[str, str]] = {}
changed: Final[dict[str, str]] = {}


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000, limit=LIMIT)
    say(port=server.sockets[0].getsockname()[1])
    await asyncio.to_thread(obey)


def obey() -> None:
    for line in sys.stdin:
        told = json.loads(line)
        (secrets if "secret" in told else changed)[told["name"]] = told.get("secret") or told["answer"]
        say(state="told")


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path, headers = parse(head)
            body = await reader.readexactly(int(headers["content-length"]))
            name, answer, delay_ms = path.strip("/").split("/")
            answer = changed.get(name, answer)
            harm = None
            if answer == "flap":
                answer = random.choice(("200", "500"))
            elif answer == "hostile":
                status, harm = random.choice(HOSTILE)
                answer = str(status)
            request = {
                "name": name,
                "event_id": headers["webhook-id"],
                "attempt": int(headers["dealix-delivery-attempt"]),
                "sha256": hashlib.sha256(body).hexdigest(),
                "status": int(answer) if answer.isdigit() else 0,
            }
            signed, age_s = is_signed(name, headers, body), time.time() - int(headers.get("webhook-timestamp", "0"))
            say(t=time.monotonic(), state="received", signed=signed, age_s=age_s, **request)
            await asyncio.sleep(int(delay_ms) / 1000)
            if not answer.isdigit():
                await fail(answer, reader, writer)
                break
            # Said before it is written: whatever the daemon can have read stands in the book.
            say(t=time.monotonic(), state="answered", **request)
            if harm is not None:
                writer.write(harm)
                break
            writer.write(f"HTTP/1.1 {answer} Told\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has left
    finally:
        writer.close()


async def fail(how: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Give no whole answer, until the client has left."""
    if how == "hang":
        await reader.read()
    elif how == "drip":
        for byte in b"HTTP/1.1 200 OK\r\nServer: one of the slow\r\nContent-Length: 0\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(DRIP_S)
    else:
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def is_signed(name: str, headers: dict[str, str], body: bytes) -> bool | None:
    """Whether both signatures are those of the secret, for the same time; None where the secret is not known."""
    if name not in secrets:
        return None
    secret = secrets[name]
    stamp = headers["webhook-timestamp"]
    own = hmac.new(secret.encode(), f"{stamp}.".encode() + body, "sha256").hexdigest()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = hmac.new(key, f"{headers['webhook-id']}.{stamp}.".encode() + body, "sha256").digest()
    return (
        headers["dealix-signature"] == f"t={stamp},v1={own}"
        and headers["webhook-signature"] == f"v1,{base64.b64encode(signed).decode()}"
    )


def parse(head: bytes) -> tuple[str, dict[str, str]]:
    request_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return request_line.split(" ")[1], {name.lower(): value.strip() for name, _, value in pairs}


def say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
