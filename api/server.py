"""The API's server: Hypercorn on a socket of our own, with the limits that it does not set by itself."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from typing import Final

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_hypercorn  # pyright: ignore[reportUnknownVariableType] its WSGI half
from quart_trio import QuartTrio

from daemon.errors import SettingsInvalid

BACKLOG: Final = 256
IDLE_S: Final = 15.0
"""How long a kept-alive connection may be idle, and how long a request's head may take to come."""
UNREAD_MS: Final = 20_000
"""How long the peer may leave an answer unread. Hypercorn sends under a shield: nothing but the socket's own end stops
a send to a peer who takes nothing, not even the end of this process."""


def listen(bind: str, *, unread_ms: int = UNREAD_MS) -> socket.socket:
    """A listening socket at `host:port` or `[::1]:port`. Raises SettingsInvalid where that cannot be had."""
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by the accepted ones (Linux, tcp(7)).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
        listener.bind((host, int(port)))
        listener.listen(BACKLOG)
    except OSError as e:
        listener.close()
        raise SettingsInvalid(f"api.bind: cannot listen on {bind}: {e.strerror or e}") from e
    listener.setblocking(False)
    return listener


async def serve(  # noqa: PLR0913 all but the first two named at the call
    app: QuartTrio,
    listeners: Sequence[socket.socket],
    *,
    stop: trio.Event,
    grace_s: float,
    idle_s: float = IDLE_S,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set, then refuse new connections and let requests in flight end, `grace_s` at most.

    Takes the listening sockets over and closes them. Started with the URLs, `http://127.0.0.1:8080` and so on. Do not
    cancel it: requests would end without an answer.
    """
    config = Config()
    config.bind = [f"fd://{listener.detach()}" for listener in listeners]
    config.backlog = BACKLOG
    config.accesslog = None  # the application writes one line a request itself
    config.errorlog = logging.getLogger("hypercorn.error")  # and so into the program's own log
    config.include_server_header = False
    config.keep_alive_timeout = idle_s
    config.graceful_timeout = grace_s
    await serve_hypercorn(app, config, shutdown_trigger=stop.wait, task_status=task_status)
