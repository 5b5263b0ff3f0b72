"""The API's server: sockets to listen on, a bounded number of connections, and a stop that lets them finish."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import repr_socket_addr  # pyright: ignore[reportUnknownVariableType] a bare tuple
from quart_trio import QuartTrio

from api.connection import Connection, Limits
from api.places import Places
from daemon.errors import SettingsInvalid
from daemon.log import get

log = get("api")

BACKLOG: Final = 256
"""Connections that the kernel holds for us while all places are taken."""
OUT_OF_DESCRIPTORS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
PAUSE_S: Final = 0.1
"""How long accepting rests when the machine has nothing left for it. Deliveries go first."""


def listen(bind: str, setting: str = "api.bind") -> socket.socket:
    """A listening socket at `host:port` or `[::1]:port`. Raises SettingsInvalid where that cannot be had."""
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(BACKLOG)
    except OSError as e:
        listener.close()
        raise SettingsInvalid(f"{setting}: cannot listen on {bind}: {e.strerror or e}") from e
    return listener


def adopt(descriptors: Sequence[int]) -> list[socket.socket]:
    """The listening sockets that systemd passed, to be used in place of `listen`. Raises SettingsInvalid for others."""
    adopted: list[socket.socket] = []
    for descriptor in descriptors:
        try:
            os.set_inheritable(descriptor, False)  # no child of ours shall keep it open
            passed = socket.socket(fileno=descriptor)
            listening = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as e:
            raise SettingsInvalid(f"LISTEN_FDS: descriptor {descriptor} is no socket: {e.strerror}") from e
        if not listening or passed.type != socket.SOCK_STREAM:
            raise SettingsInvalid(f"LISTEN_FDS: descriptor {descriptor} does not listen: use ListenStream=, Accept=no")
        adopted.append(passed)
    return adopted


async def serve(  # noqa: PLR0913 all but the first two named at the call
    app: QuartTrio,
    listeners: Sequence[socket.socket],
    *,
    stop: trio.Event,
    grace_s: float,
    limits: Limits = Limits(),  # noqa: B008 frozen
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set, then take no new connections and let requests in flight end, `grace_s` at most.

    Takes the listening sockets over and closes them. Started with the URLs, `http://127.0.0.1:8080` and so on. Do not
    cancel it: requests would end without an answer.
    """
    config, context, wrapped = _config(), WorkerContext(None), ASGIWrapper(app)
    places = Places(limits.connections)
    lifespan = Lifespan(wrapped, config, {})
    async with trio.open_nursery() as living:
        await living.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        async with trio.open_nursery() as connections:

            def meet(stream: trio.SocketStream) -> Connection:
                return Connection(stream, wrapped, config, context, limits)

            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(_accept, listener, places, connections, meet)
                task_status.started([_url(listener) for listener in listeners])
                await stop.wait()
                accepting.cancel_scope.cancel()
            config.keep_alive_max_requests = 0  # from now on each answer says that it is the last one
            places.close_soon(limits.last_s)
            connections.cancel_scope.deadline = trio.current_time() + grace_s
        await lifespan.wait_for_shutdown()
        living.cancel_scope.cancel()


async def _accept(
    listener: socket.socket,
    places: Places,
    connections: trio.Nursery,
    meet: Callable[[trio.SocketStream], Connection],
) -> None:
    listener.setblocking(False)
    async with trio.SocketListener(trio.socket.from_stdlib_socket(listener)) as incoming:
        while True:
            try:
                stream = await incoming.accept()
            except OSError as e:
                if e.errno not in OUT_OF_DESCRIPTORS:
                    raise
                log.warning("api.out_of_descriptors", reason=e.strerror)
                await trio.sleep(PAUSE_S)
                continue
            if isinstance(listener.getsockname(), tuple):  # TCP, and not a unix socket
                stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = meet(stream)
            try:
                await places.take(connection)
            except BaseException:
                stream.socket.close()
                raise
            connections.start_soon(places.hold, connection)


def _config() -> Config:
    """What Hypercorn's protocol and lifespan read."""
    config = Config()
    config.accesslog = None  # the application writes one line a request itself
    config.errorlog = logging.getLogger("hypercorn.error")  # and so into the program's own log
    config.include_server_header = False
    return config


def _url(listener: socket.socket) -> str:
    return f"http://{repr_socket_addr(listener.family, listener.getsockname())}"
