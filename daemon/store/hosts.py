"""The hosts of a libpq URL, and the parameters with which each of their addresses is tried."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from typing import Final

import trio
from psycopg import conninfo as libpq
from psycopg import errors

from daemon.errors import DatabaseUnavailable, SettingsInvalid

_DEFAULTS: Final = {
    # A peer that fell silent (unplugged, behind a dropped NAT entry) gives no error by itself. These end a connection
    # 5 s after something was sent that nobody acknowledges, and an idle one after 15 s. Without the first a statement
    # waits for its own deadline, and after a silence of 6 s TCP repeats itself only 6 s later: the network would be
    # back for 5 s before anything went on. A server that is merely slow acknowledges.
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
    "client_encoding": "UTF8",
    # Looking for Kerberos credentials may block the whole event loop, and is tried before TLS unless told.
    "gssencmode": "disable",
}

_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("dealix_database_dns")
_LOOKUPS = 4
"""Threads for host names of databases. Their own, so that a silent DNS server cannot take those of everybody else."""


def parameters(conninfo: str, options: Mapping[str, str] | None = None) -> dict[str, str]:
    """The connection parameters of a libpq URL or key-value string, with our defaults where it says nothing.

    `options` are settings for the session, name to value; they come after those that `conninfo` has.

    Raises SettingsInvalid; the text repeats nothing of `conninfo`, which may hold a password.
    """
    try:
        given = {key: str(value) for key, value in libpq.conninfo_to_dict(conninfo).items() if value is not None}
    except errors.ProgrammingError:
        # `from None`: the driver's text quotes the part that it could not read.
        raise SettingsInvalid("database.url: neither a postgresql:// URL nor a libpq connection string") from None
    several = "," in given.get("host", "") + given.get("hostaddr", "")
    if options:
        given["options"] = " ".join([given.get("options", ""), *map(_option, options.items())]).strip()
    return (
        _DEFAULTS
        # With several hosts the one that takes writes is meant, whichever it is today.
        | ({"target_session_attrs": "read-write"} if several else {})
        | given
    )


def split(params: Mapping[str, str]) -> list[dict[str, str]]:
    """One set of parameters per host, in the order given. A single host, or none, stays as it is.

    Raises SettingsInvalid where `host`, `hostaddr` and `port` list different numbers of them.
    """
    lists = {key: params[key].split(",") for key in ("host", "hostaddr", "port") if params.get(key)}
    count = max((len(values) for key, values in lists.items() if key != "port"), default=1)
    if len(lists.get("port", ())) == 1:
        lists["port"] *= count
    if any(len(values) != count for values in lists.values()):
        raise SettingsInvalid("database.url: the numbers of hosts, addresses and ports differ")
    return [{**params, **{key: values[i] for key, values in lists.items()}} for i in range(count)]


async def resolve(params: Mapping[str, str]) -> list[dict[str, str]]:
    """The same parameters once per address of their one host, so that libpq itself never waits for DNS.

    Raises DatabaseUnavailable where the name has no address.
    """
    host = params.get("host", "")
    if not host or host.startswith(("/", "@")) or params.get("hostaddr"):
        return [dict(params)]  # a unix socket, the default, or an address already
    if _is_address(host):
        return [{**params, "hostaddr": host}]
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_LOOKUPS)
        _limiter.set(limiter)
    try:
        found = await trio.to_thread.run_sync(_look_up, host, abandon_on_cancel=True, limiter=limiter)
    except OSError as e:  # UnicodeError: a label that is too long or empty
        raise DatabaseUnavailable(f"host {host}: {e.strerror or e}") from e
    except UnicodeError as e:
        raise DatabaseUnavailable(f"host {host}: not a host name") from e
    return [{**params, "hostaddr": address} for address in found]


def share(deadline: float, among: int) -> float:
    """The deadline of the first of `among` attempts that have until `deadline` (Trio's clock) together."""
    now = trio.current_time()
    return now + (deadline - now) / among


def _option(setting: tuple[str, str]) -> str:
    """As libpq wants it: `-c name=value`, spaces and backslashes escaped."""
    name, value = setting
    return f"-c {name}=" + value.replace("\\", "\\\\").replace(" ", "\\ ")


def _look_up(host: str) -> list[str]:
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in answers))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
