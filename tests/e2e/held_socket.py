"""An API's socket that the service manager holds, and those who ask there without a pause."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import httpx

from tests.e2e.scene import AUTHORIZED
from tests.support.daemon_process import COMMAND, Installation, until

WITH_SOCKET: Final = (
    "import os, sys\n"
    "os.dup2(int(sys.argv[1]), 3)\n"
    "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'}\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)
"""As systemd does it: the socket is descriptor 3 of the process that LISTEN_PID names."""
PATHS: Final = ("/healthz", "/api/v1/ecosystem/webhooks?customer_id=acme")


class Asked(NamedTuple):
    """One request. `end` is its status, or what went wrong."""

    at: float
    end: int | str
    took_s: float


def daemons_on(listener: socket.socket, directory: Path, command: Sequence[str] = COMMAND) -> Installation:
    """Daemons that are started with this socket."""
    with_socket = (sys.executable, "-c", WITH_SOCKET, str(listener.fileno()), *command)
    return Installation(directory, command=with_socket, pass_fds=[listener.fileno()])


@contextmanager
def asking(port: int, *, pause_s: float = 0.01) -> Generator[list[Asked]]:
    """Asks again and again for each path, over new connections and over one that is kept."""
    asked: list[Asked] = []
    enough = threading.Event()

    def again_and_again(request: Callable[[], int]) -> None:
        while not enough.wait(pause_s):
            at = time.monotonic()
            try:
                end: int | str = request()
            except (OSError, http.client.HTTPException, httpx.HTTPError) as e:
                end = repr(e)
            asked.append(Asked(at, end, time.monotonic() - at))

    def by_a_new_connection(path: str) -> int:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            connection.request("GET", path, headers=AUTHORIZED)
            return connection.getresponse().status

    with contextlib.ExitStack() as stack:
        requests: list[Callable[[], int]] = []
        for path in PATHS:
            kept = stack.enter_context(
                httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=AUTHORIZED, timeout=30)
            )
            requests.append(lambda path=path: by_a_new_connection(path))
            requests.append(lambda path=path, kept=kept: kept.get(path).status_code)
        threads = [threading.Thread(target=again_and_again, args=[request]) for request in requests]
        for thread in threads:
            thread.start()
        try:
            yield asked
        finally:
            enough.set()
            for thread in threads:
                thread.join()


def wait_for_more(asked: list[Asked]) -> None:
    """Until there are a hundred more."""
    wanted = len(asked) + 100
    until(lambda: len(asked) >= wanted, within_s=20, what="a hundred answers")
