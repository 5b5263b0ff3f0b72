"""From a target to a TCP connection, only ever to addresses that were judged a moment before."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from typing import Final

import trio

from daemon.policy.addresses import Network, judge
from daemon.policy.endpoint_url import LOCALHOST, Target, is_address
from daemon.sender.failure import Failure
from daemon.sender.resolver import Resolver

_STAGGER_S: Final = 0.25
"""RFC 8305 section 5: how long one address may stay silent before the next is tried beside it."""
_MAX_ADDRESSES: Final = 8
"""All addresses of a name are judged, this many are tried."""

_WORDS: Final = {
    errno.ECONNREFUSED: "was refused",
    errno.ECONNRESET: "was reset",
    errno.EHOSTUNREACH: "found no route to the host",
    errno.ENETUNREACH: "found no route to the host",
    errno.ETIMEDOUT: "timed out",
    errno.EMFILE: "could not be opened: the sender is out of sockets",
    errno.ENFILE: "could not be opened: the sender is out of sockets",
}


class Dialer:
    """Resolves, judges and connects.

    `allow_localhost` opens 127.0.0.1 and ::1 to the hosts that say so in their URL, not to names that point there.
    """

    def __init__(
        self,
        resolver: Resolver,
        *,
        allow_localhost: bool,
        allow_networks: Sequence[Network],
        free_sockets: Callable[[], None],
    ) -> None:
        """`free_sockets` is called when the process has no file descriptor left for a new connection."""
        self._resolver = resolver
        self._free_sockets = free_sockets
        self._allow_localhost = allow_localhost
        self._allow_networks = tuple(allow_networks)

    async def addresses(self, target: Target) -> tuple[str, ...] | Failure:
        """The numeric addresses to try, in order. One that must not be called refuses the whole name.

        Picking the good ones out of a mixed answer would let a name server steer which check an attacker passes.
        """
        found = (target.host,) if target.is_literal else await self._resolver.lookup(target.host)
        if isinstance(found, Failure):
            return found
        localhost = self._allow_localhost and target.host in LOCALHOST
        for address in found:
            verdict = judge(address, self._allow_networks, allow_localhost=localhost)
            if not verdict.allowed:
                verb = "is" if target.is_literal else "resolves to"
                return Failure("blocked", f"The host {target.host} {verb} {verdict.reason}, which is never called.")
        return _interleaved(found)[:_MAX_ADDRESSES]

    async def proxy_addresses(self, host: str) -> tuple[str, ...] | Failure:
        """The addresses of the operator's proxy, which may be anywhere."""
        found = (host,) if is_address(host) else await self._resolver.lookup(host)
        if isinstance(found, Failure):
            return Failure("connect", "The egress proxy's name does not resolve.")
        return _interleaved(found)[:_MAX_ADDRESSES]

    async def connect(self, addresses: Sequence[str], port: int, name: str) -> socket.socket | Failure:
        """A connected, non-blocking socket to the first of `addresses` that answers (RFC 8305, "happy eyeballs").

        `name` stands for the endpoint in the failure's sentence. Cancelled, it leaves no socket behind.
        """
        end = await _connect(addresses, port)
        if isinstance(end, OSError) and end.errno in {errno.EMFILE, errno.ENFILE}:
            self._free_sockets()
            end = await _connect(addresses, port)
        if isinstance(end, OSError):
            words = _WORDS.get(end.errno or 0, "failed")
            return Failure("connect", f"The connection to {name} {words}.")
        return end


def _interleaved(addresses: Sequence[str]) -> tuple[str, ...]:
    """The families by turns, beginning with the first address's (RFC 8305 section 4)."""
    first_is_v6 = ":" in addresses[0]
    first = [address for address in addresses if (":" in address) == first_is_v6]
    second = [address for address in addresses if (":" in address) != first_is_v6]
    shared = min(len(first), len(second))
    mixed = [address for pair in zip(first, second, strict=False) for address in pair]
    return (*mixed, *first[shared:], *second[shared:])


async def _connect(addresses: Sequence[str], port: int) -> socket.socket | OSError:
    return await (_connect_one(addresses[0], port) if len(addresses) == 1 else _race(addresses, port))


async def _connect_one(address: str, port: int) -> socket.socket | OSError:
    try:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    except OSError as e:
        return e
    try:
        await trio.socket.from_stdlib_socket(sock).connect((address, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        is_itself = sock.getsockname() == sock.getpeername()
    except OSError as e:
        sock.close()
        return e
    except BaseException:
        sock.close()
        raise
    if is_itself:  # nobody listens on a free local port, and the kernel picked just that port for our own end
        sock.close()
        return OSError(errno.ECONNREFUSED, "connected to itself")
    return sock


async def _race(addresses: Sequence[str], port: int) -> socket.socket | OSError:
    winner: socket.socket | None = None
    error = OSError(errno.EHOSTUNREACH, "no address answered")
    try:
        async with trio.open_nursery() as nursery:

            async def run(address: str, failed: trio.Event) -> None:
                nonlocal winner, error
                end = await _connect_one(address, port)
                if isinstance(end, OSError):
                    error = end
                    failed.set()
                elif winner is None:
                    winner = end
                    nursery.cancel_scope.cancel()
                else:
                    end.close()

            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(run, address, failed)
                with trio.move_on_after(_STAGGER_S):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    return error if winner is None else winner
