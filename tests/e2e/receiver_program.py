"""Run as a program of its own: the endpoints of all customers, on one port, and a book of every request.

The path says how it is answered: `/<name>/<status>/<milliseconds>`. Standard output has the port, then a JSON line
when a request is complete and another when its answer was handed to the kernel. Ends when standard input ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
    say(port=server.sockets[0].getsockname()[1])
    await asyncio.to_thread(sys.stdin.read)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path, headers = parse(head)
            body = await reader.readexactly(int(headers["content-length"]))
            name, status, delay_ms = path.strip("/").split("/")
            request = {
                "name": name,
                "event_id": headers["webhook-id"],
                "attempt": int(headers["dealix-delivery-attempt"]),
                "sha256": hashlib.sha256(body).hexdigest(),
                "status": int(status),
            }
            say(t=time.monotonic(), state="received", **request)
            await asyncio.sleep(int(delay_ms) / 1000)
            # Said before it is written: whatever the daemon can have read stands in the book.
            say(t=time.monotonic(), state="answered", **request)
            writer.write(f"HTTP/1.1 {status} Told\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has left
    finally:
        writer.close()


def parse(head: bytes) -> tuple[str, dict[str, str]]:
    request_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return request_line.split(" ")[1], {name.lower(): value.strip() for name, _, value in pairs}


def say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
