"""Run as a program: the sender alone, which is the floor of what a delivery can cost here.

The product's own POST, signed and built as the daemon does it, in a bare Trio loop: no database, no actors, nothing
recorded. Standard input is one JSON object (Plan), standard output another (Floor).
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import Final

import msgspec
import trio

from bench.parts import Stage
from bench.seeding import DATA
from daemon import clock
from daemon.ids import new_event_id
from daemon.policy import endpoint_url, signing
from daemon.sender.endpoint import Endpoint, Sender
from daemon.sender.request import build
from daemon.store.subscriptions import new_secret

GATE: Final = 8
"""As in the daemon."""
LIMIT_S: Final = 120.0


class Plan(msgspec.Struct, frozen=True):
    """So many POSTs in all, to these URLs in turns, with so many going on at a time."""

    urls: list[str]
    posts: int
    at_once: int


class Floor(msgspec.Struct, frozen=True):
    """What the POSTs after the first to each URL took; `cpu_us` of this process for each."""

    posts: int
    seconds: float
    cpu_us: float

    @property
    def per_second(self) -> float:
        """POSTs a second."""
        return self.posts / self.seconds


def measure(on: Stage, urls: Sequence[str], posts: int, *, at_once: int = 32) -> Floor:
    """Run it in a process of its own. `at_once`: measured from 8 to 256, the cheapest."""
    plan = msgspec.json.encode(Plan(list(urls), posts, at_once))
    command = [sys.executable, "-m", "bench.bare"]
    done = subprocess.run(command, input=plan, stdout=subprocess.PIPE, env=on.environ, timeout=LIMIT_S, check=True)
    return msgspec.json.decode(done.stdout, type=Floor)


class Loop:
    """All endpoints, each with a signer of its own."""

    def __init__(self, plan: Plan) -> None:
        networks = [IPv4Network("127.0.0.0/8")]
        self._sender = Sender(timeout_s=10, allow_networks=networks)
        self._gate = trio.CapacityLimiter(GATE)
        targets = [endpoint_url.parse(url, allow_localhost=False, allow_networks=networks) for url in plan.urls]
        self._endpoints = [self._sender.endpoint(target) for target in targets]
        self._signers = [signing.Signer(signing.SigningKey.of(new_secret())) for _ in targets]
        self._next = 0

    async def post_all(self, posts: int, at_once: int) -> None:
        """So many POSTs; raises where one was not answered by 200."""
        end = self._next + posts
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(self._post_until, end)

    async def _post_until(self, end: int) -> None:
        while self._next < end:
            n, self._next = self._next % len(self._endpoints), self._next + 1
            outcome = await self._post(self._endpoints[n], self._signers[n])
            if outcome != 200:
                raise ConnectionError(f"{self._endpoints[n].target.url}: {outcome}")

    async def _post(self, endpoint: Endpoint, signer: signing.Signer) -> int | str | None:
        event_id = new_event_id()
        body = signing.envelope(
            event_id=event_id, event_type="deal.won", customer_id="c0", data=DATA, created_at=clock.now()
        )

        def request() -> bytes:
            signed = signer.sign(event_id=event_id, body=body, t=clock.unix_s())
            fields = signing.headers(
                event_id=event_id,
                event_type="deal.won",
                attempt=1,
                dealix_signature=signed.dealix,
                webhook_signature=signed.webhook,
                t=signed.t,
            )
            return build(endpoint.target, fields, body)

        outcome = await endpoint.post(request, self._gate)
        return outcome.error or outcome.status_code


async def run(plan: Plan) -> Floor:
    """The connections first, then what is measured."""
    loop = Loop(plan)
    for _ in range(2):  # as many connections to each URL as there may be at once
        await loop.post_all(max(len(plan.urls), plan.at_once) * 2, plan.at_once)
    before, began = _cpu_s(), time.monotonic()
    await loop.post_all(plan.posts, plan.at_once)
    seconds, cpu_s = time.monotonic() - began, _cpu_s() - before
    return Floor(plan.posts, seconds, cpu_s / plan.posts * 1e6)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(trio.run(run, msgspec.json.decode(sys.stdin.buffer.read(), type=Plan))))
