"""From where a request comes: for counting failures by, never for letting anybody in."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from werkzeug.datastructures import Headers

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_SHARED_BITS: Final = 64
"""Whoever has one IPv6 address has a /64 of them."""


def client_address(peer: str | None, headers: Headers, trusted: Sequence[Network]) -> str:
    """The client's address, an IPv6 one without its last 64 bits; empty where the peer has none.

    `X-Forwarded-For` counts only as far as those who wrote it are `trusted` proxies: it is read from its end, and the
    first address that is not one of them is the client. Everything before that one is the client's own claim.
    """
    hops = [hop.strip() for line in headers.getlist("X-Forwarded-For") for hop in line.split(",")]
    found = _parsed(peer or "")
    while found is not None and hops and any(found in network for network in trusted):
        further = _parsed(hops.pop())
        if further is None:
            break
        found = further
    return "" if found is None else _as_counted(found)


def _parsed(text: str) -> Address | None:
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found


def _as_counted(address: Address) -> str:
    if isinstance(address, IPv6Address):
        return str(IPv6Address(int(address) >> _SHARED_BITS << _SHARED_BITS))
    return str(address)
