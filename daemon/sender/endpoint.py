"""The face to the actors: one Sender for the daemon, an Endpoint for each actor, POSTs that return an Outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import trio

from daemon.model import Outcome
from daemon.policy.addresses import Network
from daemon.policy.endpoint_url import LOCALHOST, Target
from daemon.sender.connection import Connection, Gate
from daemon.sender.dialer import Dialer
from daemon.sender.failure import Failure
from daemon.sender.idle import IdleShelf
from daemon.sender.proxy import Proxy, open_tunnel, parse_proxy
from daemon.sender.resolver import Resolve, Resolver, system_resolve
from daemon.sender.response import ResponseReader
from daemon.sender.tls import client_context
from daemon.sender.watch import Watch

_MAX_IDLE: Final = 1024
"""At 38 KiB each under TLS: 40 MiB."""
_HANDSHAKES: Final = 4
"""Handshakes that compute in one turn of the event loop: at about 1 ms each, what the API's latency can bear."""

_Phase = Literal["lookup", "connect", "tls", "answer"]
_TIMED_OUT: Final[dict[_Phase, str]] = {
    "lookup": "The host name was not looked up",
    "connect": "The connection was not made",
    "tls": "The TLS handshake was not finished",
    "answer": "No complete answer came",
}


class _Progress:
    """How far one POST has come, for the sentence of a time-out and for an answer whose body never ended."""

    __slots__ = ("phase", "reader")

    def __init__(self) -> None:
        self.phase: _Phase = "lookup"
        self.reader: ResponseReader | None = None


_Opener = Callable[[Target, _Progress], Awaitable[Connection | Failure]]


class Sender:
    """One per daemon, made inside the Trio run. Ignores proxies of the environment, follows no redirect."""

    def __init__(  # noqa: PLR0913 - the settings it takes, by name
        self,
        *,
        timeout_s: float,
        allow_localhost: bool = False,
        allow_networks: Sequence[Network] = (),
        proxy_url: str | None = None,
        ca_file: Path | None = None,
        max_idle: int = _MAX_IDLE,
        resolve: Resolve = system_resolve,
    ) -> None:
        """`timeout_s` bounds one POST. `ca_file` (PEM) is trusted beside the system's authorities.

        With `proxy_url` everything but localhost goes through that proxy, which then resolves and judges names; literal
        addresses are judged here all the same. Raises SettingsInvalid for a bad proxy or file.
        """
        self._timeout_s = timeout_s
        self._proxy = None if proxy_url is None else parse_proxy(proxy_url)
        self._tls_context = client_context(ca_file)
        self._handshakes = trio.CapacityLimiter(_HANDSHAKES)
        self._shelf = IdleShelf(max_idle)
        self._watch = Watch()
        self._dialer = Dialer(
            Resolver(resolve),
            allow_localhost=allow_localhost,
            allow_networks=allow_networks,
            free_sockets=self._shelf.drop_all,
        )

    def endpoint(self, target: Target) -> Endpoint:
        """A new endpoint without connections. Its owner calls `close_idle` when done with it."""
        return Endpoint(target, self._open, self._shelf, self._watch, self._timeout_s)

    @property
    def idle(self) -> int:
        """Idle connections of all endpoints."""
        return len(self._shelf)

    async def check(self, target: Target, timeout_s: float) -> str | None:
        """At registration: why `target` is refused, or None if it is fine or cannot be told within `timeout_s`.

        The reason reads like those of `endpoint_url.parse`: "host hooks.example resolves to a private address, …".
        """
        if self._proxy_for(target) is not None and not target.is_literal:
            return None
        with trio.move_on_after(timeout_s):
            found = await self._dialer.addresses(target)
            if isinstance(found, Failure) and found.kind == "blocked":
                return found.sentence.removeprefix("The ").removesuffix(".")
        return None

    def drop_expired(self) -> None:
        """Close what has been idle too long. Every POST does so too; call it now and then for when there is none."""
        self._shelf.drop_expired()

    def close_idle(self) -> None:
        """Close every idle connection."""
        self._shelf.drop_all()

    async def aclose(self) -> None:
        """Close the idle connections and keep none from now on. POSTs in flight end as they would."""
        self._shelf.close()
        await trio.lowlevel.checkpoint()

    async def _open(self, target: Target, progress: _Progress) -> Connection | Failure:
        """A new connection to `target`, TLS done where it is https. For the endpoints."""
        progress.phase = "lookup"
        proxy = self._proxy_for(target)
        addresses = await self._addresses(target, proxy)
        if isinstance(addresses, Failure):
            return addresses
        progress.phase = "connect"
        port, name = (target.port, target.authority) if proxy is None else (proxy.port, "the egress proxy")
        sock = await self._dialer.connect(addresses, port, name)
        if isinstance(sock, Failure):
            return sock
        connection = Connection(sock)
        ready = False
        try:
            failure = None if proxy is None else await open_tunnel(sock, proxy, target)
            if failure is None and target.scheme == "https":
                progress.phase = "tls"
                failure = await connection.start_tls(self._tls_context, target.host, self._handshakes)
            ready = failure is None
        finally:
            if not ready:
                connection.close()
        return connection if failure is None else failure

    async def _addresses(self, target: Target, proxy: Proxy | None) -> tuple[str, ...] | Failure:
        if proxy is None:
            return await self._dialer.addresses(target)
        if target.is_literal:
            judged = await self._dialer.addresses(target)
            if isinstance(judged, Failure):
                return judged
        return await self._dialer.proxy_addresses(proxy.host)

    def _proxy_for(self, target: Target) -> Proxy | None:
        return None if target.host in LOCALHOST else self._proxy


class Endpoint:
    """Belongs to one actor. Connections made for its target are used for nothing else."""

    def __init__(self, target: Target, opener: _Opener, shelf: IdleShelf, watch: Watch, timeout_s: float) -> None:
        """Made by `Sender.endpoint`."""
        self.target = target
        self.in_use = 0
        """POSTs going on."""
        self._opener = opener
        self._shelf = shelf
        self._watch = watch
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []
        self._closed_times = 0

    @property
    def idle(self) -> int:
        """Connections kept for the next POST."""
        return len(self._idle)

    def close_idle(self) -> None:
        """Close the kept connections, and keep none of those now in use: the actor goes, or its target has changed."""
        self._closed_times += 1
        self._shelf.drop_owned(self._idle)

    async def post(self, request: Callable[[], bytes], gate: Gate) -> Outcome:
        """Send what `request` builds and tell what came of it. One deadline stands around everything.

        `request` is called under `gate` just before the bytes leave, so that a signature's time is the sending's; a
        second time when a reused connection turns out dead before the first byte of an answer. The gate is free
        while dialling and while waiting. Raises only what `request` raises.

        A complete header block decides. The body is read until it ends, 4 KiB are passed or the deadline comes,
        and whatever ended it then changes nothing but `response_truncated`.
        """
        started_at = trio.current_time()
        progress = _Progress()
        self.in_use += 1
        try:
            failure = await self._attempt(request, gate, progress, started_at + self._timeout_s)
        finally:
            self.in_use -= 1
        duration_ms = round((trio.current_time() - started_at) * 1000)
        if progress.reader is not None and progress.reader.head_complete:
            return progress.reader.outcome(duration_ms)
        if failure is None:
            failure = Failure("timeout", f"{_TIMED_OUT[progress.phase]} within {self._timeout_s:g} s.")
        return Outcome(None, failure.kind, failure.sentence, duration_ms)

    async def _attempt(
        self, request: Callable[[], bytes], gate: Gate, progress: _Progress, deadline: float
    ) -> Failure | None:
        """None for an answer, or for none by the deadline."""
        connection = self._shelf.take(self._idle)
        if connection is not None:
            self._watch.add(connection, deadline)
            try:
                end = await self._exchange(connection, request, gate, progress)
            finally:
                self._watch.remove(connection)
            if not connection.died_unanswered:
                return end
            # It had most likely been closed by the server while idle, as ours left: once more, on a fresh one.
        with trio.CancelScope(deadline=deadline):
            opened = await self._opener(self.target, progress)
            if isinstance(opened, Failure):
                return opened
            return await self._exchange(opened, request, gate, progress)
        return None

    async def _exchange(
        self, connection: Connection, request: Callable[[], bytes], gate: Gate, progress: _Progress
    ) -> Failure | None:
        progress.phase = "answer"
        reader = progress.reader = ResponseReader()
        closed_times = self._closed_times
        keep = False
        try:
            end = await connection.exchange(request, gate, reader)
            keep = end is None and closed_times == self._closed_times and connection.may_be_kept(reader)
        finally:
            reader.release()
            if keep:
                self._shelf.put(connection, self._idle)
            else:
                connection.close()
        return end
