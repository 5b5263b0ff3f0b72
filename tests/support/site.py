"""The whole product in a thread of this process, for tests that drive a browser, which is no friend of Trio's loop."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

import trio
from trio.lowlevel import current_trio_token

from daemon.ids import CustomerId
from daemon.store import api_keys
from tests.support.answers import status
from tests.support.api import Served, open_api
from tests.support.receiver import Receiver, open_receiver

T = TypeVar("T")

START_S = 60.0
CALL_S = 20.0


@dataclass(frozen=True, slots=True)
class Site:
    """A running product with an endpoint to send to. `call` runs an async function in its loop and waits for it."""

    api: Served
    receiver: Receiver
    token: trio.lowlevel.TrioToken

    @property
    def url(self) -> str:
        return self.api.url

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        async def bounded() -> T:
            with trio.fail_after(CALL_S):
                return await function()

        return trio.from_thread.run(bounded, trio_token=self.token)

    def key_of(self, customer_id: str) -> str:
        """A new key of a customer of its own."""

        async def make() -> str:
            async with self.api.pool.connection(10) as conn:
                return (await api_keys.create(conn, CustomerId(customer_id)))[1]

        return self.call(make)


@contextmanager
def running_site(database_url: str) -> Generator[Site]:
    """The product at work on a database, until the block ends."""
    ready: SimpleQueue[Site | BaseException] = SimpleQueue()
    stop = trio.Event()

    async def main() -> None:
        async with (
            open_receiver() as receiver,
            open_api(database_url, working=True, delivery={"timeout_s": 2, "breaker_after": 100}) as api,
        ):
            receiver.answer_all(status(200))
            ready.put(Site(api, receiver, current_trio_token()))
            await stop.wait()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as e:  # noqa: BLE001 - told to the test's own thread
            ready.put(e)

    thread = threading.Thread(target=run, name="site", daemon=True)
    thread.start()
    site = ready.get(timeout=START_S)
    if isinstance(site, BaseException):
        raise site
    try:
        yield site
    finally:
        site.token.run_sync_soon(stop.set)
        thread.join(START_S)
    if not ready.empty():
        raise AssertionError("the site did not end well") from ready.get()  # type: ignore[misc]
