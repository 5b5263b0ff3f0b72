"""Which IP addresses the daemon may connect to: our own table, as the standard library's "global" is no guard.

`ipaddress.is_global` calls NAT64, 6to4, v4-compatible and multicast addresses global and changes between Python
versions; every one of those can lead into the operator's own network. Sources of the table: the IANA special-purpose
registries for IPv4 and IPv6 (RFC 6890 and its updates) and, for IPv6, the rule that only 2000::/3 is given out at all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an address may be connected to; `reason` ends the sentence "… is" and is empty where it may."""

    allowed: bool
    reason: str = ""


ALLOWED: Final = Verdict(allowed=True)
_NOT_AN_ADDRESS: Final = Verdict(allowed=False, reason="not an IP address in its usual form")
_UNALLOCATED: Final = Verdict(allowed=False, reason="not a public IPv6 address")

_PRIVATE: Final = "a private address"
_LOOPBACK: Final = "a loopback address"
_LINK_LOCAL: Final = "a link-local address"
_MULTICAST: Final = "a multicast address"
_RESERVED: Final = "a reserved address"
_TEST: Final = "an address reserved for documentation or tests"
_RELAY: Final = "an address of a relay or translation service"

# Ascending and without overlap: `judge` looks them up by bisection.
_DENIED_V4: Final = tuple(
    (int(network.network_address), int(network.broadcast_address), Verdict(allowed=False, reason=reason))
    for network, reason in (
        (IPv4Network("0.0.0.0/8"), _RESERVED),
        (IPv4Network("10.0.0.0/8"), _PRIVATE),
        (IPv4Network("100.64.0.0/10"), "an address shared inside a provider's network"),
        (IPv4Network("127.0.0.0/8"), _LOOPBACK),
        (IPv4Network("169.254.0.0/16"), _LINK_LOCAL),
        (IPv4Network("172.16.0.0/12"), _PRIVATE),
        (IPv4Network("192.0.0.0/24"), _RESERVED),
        (IPv4Network("192.0.2.0/24"), _TEST),
        (IPv4Network("192.31.196.0/24"), _RELAY),
        (IPv4Network("192.52.193.0/24"), _RELAY),
        (IPv4Network("192.88.99.0/24"), _RELAY),
        (IPv4Network("192.168.0.0/16"), _PRIVATE),
        (IPv4Network("192.175.48.0/24"), _RELAY),
        (IPv4Network("198.18.0.0/15"), _TEST),
        (IPv4Network("198.51.100.0/24"), _TEST),
        (IPv4Network("203.0.113.0/24"), _TEST),
        (IPv4Network("224.0.0.0/4"), _MULTICAST),
        (IPv4Network("240.0.0.0/4"), _RESERVED),
    )
)
_STARTS_V4: Final = tuple(first for first, _, _ in _DENIED_V4)

# Inside 2000::/3; whatever lies outside it is refused as a whole.
_DENIED_V6: Final = tuple(
    (int(network.network_address), int(network.broadcast_address), Verdict(allowed=False, reason=reason))
    for network, reason in (
        (IPv6Network("2001::/23"), _RELAY),
        (IPv6Network("2001:db8::/32"), _TEST),
        (IPv6Network("2002::/16"), _RELAY),
        (IPv6Network("2620:4f:8000::/48"), _RELAY),
        (IPv6Network("3fff::/20"), _TEST),
    )
)
# Only for the words of the refusal: all of these are outside 2000::/3 anyway.
_NAMED_V6: Final = tuple(
    (int(network.network_address), int(network.broadcast_address), Verdict(allowed=False, reason=reason))
    for network, reason in (
        (IPv6Network("::1/128"), _LOOPBACK),
        (IPv6Network("fc00::/7"), _PRIVATE),
        (IPv6Network("fe80::/10"), _LINK_LOCAL),
        (IPv6Network("fec0::/10"), _PRIVATE),
        (IPv6Network("ff00::/8"), _MULTICAST),
    )
)
_MAPPED: Final = 0xFFFF
"""::ffff:0:0/96 without its last 32 bits (RFC 4291 section 2.5.5.2): the kernel connects to the IPv4 address inside."""
_NAT64: Final = 0x0064_FF9B << 64
"""64:ff9b::/96 without its last 32 bits (RFC 6052): a translator connects to the IPv4 address inside."""
_LOCALHOST: Final = frozenset({(0x7F00_0001, 32), (1, 128)})


def judge(address: str, allow_networks: Sequence[Network] = (), *, allow_localhost: bool = False) -> Verdict:
    """Say whether the daemon may connect to `address`, a numeric IPv4 or IPv6 address as getaddrinfo returns it.

    `allow_networks` opens exactly these networks; a v4-mapped IPv6 address counts as the IPv4 address inside it, a
    NAT64 one does not (the translator's reach is not ours to open). `allow_localhost` opens 127.0.0.1 and ::1, no
    more of 127/8. A scope id (`fe80::1%eth0`) or any text that is not an address is refused. Never raises.
    """
    parsed = _parse(address)
    if parsed is None:
        return _NOT_AN_ADDRESS
    number, bits = parsed
    verdict = _judge_v4(number) if bits == 32 else _judge_v6(number)
    if verdict.allowed:
        return verdict
    if allow_localhost and parsed in _LOCALHOST:
        return ALLOWED
    if allow_networks and inside(address, allow_networks):
        return ALLOWED
    return verdict


def inside(address: str, networks: Sequence[Network]) -> bool:
    """Say whether the numeric `address` lies in one of `networks`; False for what is not an address."""
    parsed = _parse(address)
    if parsed is None:
        return False
    number, bits = parsed
    return any(
        network.max_prefixlen == bits and int(network.network_address) <= number <= int(network.broadcast_address)
        for network in networks
    )


def _parse(address: str) -> tuple[int, int] | None:
    """The address as a number and its width in bits, a v4-mapped one as IPv4; None for anything not canonical."""
    try:
        if ":" not in address:
            return int(IPv4Address(address)), 32
        if "%" in address:
            return None
        number = int(IPv6Address(address))
    except ValueError:
        return None
    return (number & 0xFFFF_FFFF, 32) if number >> 32 == _MAPPED else (number, 128)


def _judge_v4(number: int) -> Verdict:
    first, last, verdict = _DENIED_V4[bisect_right(_STARTS_V4, number) - 1]
    return verdict if first <= number <= last else ALLOWED


def _judge_v6(number: int) -> Verdict:
    if number >> 32 == _NAT64:
        return _judge_v4(number & 0xFFFF_FFFF)
    if number >> 125 != 0b001:  # outside 2000::/3
        return next((verdict for first, last, verdict in _NAMED_V6 if first <= number <= last), _UNALLOCATED)
    return next((verdict for first, last, verdict in _DENIED_V6 if first <= number <= last), ALLOWED)
