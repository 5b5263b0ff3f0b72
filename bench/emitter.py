"""Run as a program: emitters that call `dealix.emit` at times fixed beforehand, and note when each call was made.

One thread and one connection for each, a prepared statement, one transaction a call: what an application does. The
times are absolute, so that a slow emit delays none of the others and a late one is seen as such. Standard input is one
JSON object (Plan), standard output a line for each emit: planned, called, returned (CLOCK_MONOTONIC, ns), id, customer.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from typing import Final

import msgspec
import psycopg

EMIT: Final = "SELECT event_id FROM dealix.emit(%s, 'deal.won', %s::text, notify => %s)"
EMIT_EACH: Final = """
    SELECT e.event_id FROM unnest(%s::text[]) WITH ORDINALITY AS c (id, n)
    CROSS JOIN LATERAL dealix.emit(c.id, 'deal.won', %s::text, notify => %s) AS e ORDER BY c.n
"""
ANSWER_BYTES: Final = 4096


class Plan(msgspec.Struct, frozen=True):
    """Which of all emitters run in this process, and what.

    The emits of all of them are `interval_ns` apart; `each` that follow one another are made by one statement, at the
    first one's time. With `post` each event is not left to a daemon (no wake-up), but posted to that address by its
    emitter itself: the floor of what any product could do.
    """

    url: str
    start_ns: int
    interval_ns: float
    events: int
    emitters: int
    each: int
    own: list[int]
    customers: list[str]
    data: str
    post: tuple[str, int] | None


def main() -> None:
    """Run the emitters of the plan side by side."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    lines: list[list[str]] = [[] for _ in plan.own]
    threads = [
        threading.Thread(target=emit, args=(plan, number, said)) for number, said in zip(plan.own, lines, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write("".join(line for said in lines for line in said))


def emit(plan: Plan, number: int, said: list[str]) -> None:
    """Emitter `number` makes every so many-th of the plan's calls."""
    with psycopg.connect(plan.url, autocommit=True, prepare_threshold=0) as db:
        poster = Poster(*plan.post, plan.data) if plan.post else None
        for n in range(number * plan.each, plan.events, plan.emitters * plan.each):
            customers = [plan.customers[k % len(plan.customers)] for k in range(n, min(n + plan.each, plan.events))]
            planned_ns = plan.start_ns + int(n * plan.interval_ns)
            time.sleep(max(planned_ns - time.monotonic_ns(), 0) / 1e9)
            called_ns = time.monotonic_ns()
            if plan.each == 1:
                rows = db.execute(EMIT, (customers[0], plan.data, poster is None)).fetchall()
            else:
                rows = db.execute(EMIT_EACH, (customers, plan.data, poster is None)).fetchall()
            returned_ns = time.monotonic_ns()
            for (event_id,), customer in zip(rows, customers, strict=True):
                if poster:
                    poster.post(event_id, customer)
                said.append(f"{planned_ns} {called_ns} {returned_ns} {event_id} {customer}\n")


class Poster:
    """One open connection to the receiver, used by the plainest of senders."""

    def __init__(self, host: str, port: int, data: str) -> None:
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = data

    def post(self, event_id: str, customer: str) -> None:
        """Send one event and wait for the answer."""
        head = f"POST /{customer} HTTP/1.1\r\nHost: x\r\nwebhook-id: {event_id}\r\nContent-Length: {len(self._data)}"
        self._socket.sendall(f"{head}\r\n\r\n{self._data}".encode())
        if not self._socket.recv(ANSWER_BYTES):
            raise ConnectionError("the receiver hung up")


if __name__ == "__main__":
    main()
