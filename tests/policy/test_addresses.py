"""The table of addresses: what is refused, what is not, and the laws that hold for every address."""

# ruff: noqa: RUF001 - look-alike characters are what these tables are about

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daemon.policy.addresses import inside, judge

REFUSED = {
    "a loopback address": ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"],
    "a private address": [
        "10.0.0.0",
        "10.255.255.255",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "192.168.255.255",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "::ffff:a00:1",
    ],
    "a link-local address": [
        "169.254.169.254",
        "169.254.0.1",
        "fe80::1",
        "febf::1",
        "::ffff:a9fe:a9fe",
        "64:ff9b::a9fe:a9fe",
    ],
    "an address shared inside a provider's network": ["100.64.0.1", "100.127.255.255"],
    "a reserved address": [
        "0.0.0.0",
        "0.1.2.3",
        "192.0.0.1",
        "192.0.0.8",
        "192.0.0.9",
        "192.0.0.10",
        "240.0.0.1",
        "255.255.255.255",
    ],
    "an address reserved for documentation or tests": [
        "198.18.0.1",
        "198.19.255.255",
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
        "2001:db8::1",
        "3fff::1",
        "3fff:fff::1",
    ],
    "a multicast address": ["224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1"],
    "an address of a relay or translation service": [
        "192.88.99.1",
        "192.31.196.1",
        "192.52.193.1",
        "192.175.48.1",
        "2001::1",
        "2001:1::1",
        "2001:20::1",
        "2002:7f00:1::1",
        "2002:101:101::1",
        "2620:4f:8000::1",
    ],
    "not a public IPv6 address": [
        "::",
        "::7f00:1",
        "::ffff:0:7f00:1",
        "::5efe:7f00:1",
        "1::1",
        "64:ff9b:1::1",
        "5f00::1",
        "100::1",
        "100:0:0:1::1",
        "4000::1",
        "8000::1",
        "1fff:ffff::1",
        "fe00::1",
    ],
    "not an IP address in its usual form": [
        "",
        "localhost",
        "127.1",
        "0x7f.1",
        "2130706433",
        "0177.0.0.1",
        "010.8.8.8",
        "127.0.0.01",
        "1.1.1.1 ",
        "1.1.1.1\n",
        "1.1.1.1\x00",
        "１.1.1.1",
        "fe80::1%lo",
        "2606:4700::1%1",
        "[2606:4700::1]",
        "2606:4700::1/64",
        "1.1.1.1/32",
        ":::",
        "1.1.1.256",
    ],
}
ALLOWED = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "9.255.255.255",
    "11.0.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.167.255.255",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2606:4700::1111",
    "2001:200::1",
    "2a00:1450:4001:81b::200e",
    "3ffe::1",
    "2003::1",
    "::ffff:8.8.8.8",
    "64:ff9b::101:101",
    "64:ff9b::8.8.8.8",
]


@pytest.mark.parametrize(("address", "reason"), [(a, reason) for reason, found in REFUSED.items() for a in found])
@pytest.mark.threat("N01-N17")
def test_an_address_that_is_not_public_is_refused_with_its_reason(address: str, reason: str) -> None:
    verdict = judge(address)
    assert (verdict.allowed, verdict.reason) == (False, reason)


@pytest.mark.parametrize("address", ALLOWED)
@pytest.mark.threat("N13")
def test_a_public_address_is_allowed(address: str) -> None:
    verdict = judge(address)
    assert (verdict.allowed, verdict.reason) == (True, "")


@given(st.integers(0, 2**32 - 1))
@example(0x7F000001)
@example(0x01010101)
@pytest.mark.threat("N18")
def test_mapped_and_translated_addresses_are_judged_as_the_ipv4_address_inside(number: int) -> None:
    verdict = judge(str(IPv4Address(number)))
    assert judge(str(IPv6Address(0xFFFF << 32 | number))) == verdict
    assert judge(str(IPv6Address(0x64FF9B << 96 | number))) == verdict


@given(st.integers(0, 2**120 - 1))
@example(1)
@example(0x7F000001)
@example(0xFFFF0000 << 16 | 1)
@pytest.mark.threat("N18")
def test_everything_in_the_first_of_256_parts_is_refused_but_mapped_and_translated(number: int) -> None:
    if number >> 32 not in {0xFFFF, 0x64FF9B << 64}:
        assert not judge(str(IPv6Address(number))).allowed


@given(st.integers(0, 2**112 - 1))
@pytest.mark.threat("N18")
def test_6to4_is_refused_whatever_it_carries(number: int) -> None:
    assert not judge(str(IPv6Address(0x2002 << 112 | number))).allowed


@given(st.integers(0, 2**128 - 1))
def test_ipv6_outside_the_part_that_is_given_out_is_refused(number: int) -> None:
    if number >> 125 != 1 and number >> 32 not in {0xFFFF, 0x64FF9B << 64}:
        assert not judge(str(IPv6Address(number))).allowed


@given(st.integers(0, 2**32 - 1))
def test_whatever_python_calls_private_or_reserved_is_refused_too(number: int) -> None:
    """Its table has holes, so it is no guard, but what it does refuse is a check on ours."""
    address = IPv4Address(number)
    if (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
    ):
        assert not judge(str(address)).allowed


@given(st.text(max_size=20))
def test_no_text_makes_it_raise(text: str) -> None:
    verdict = judge(text)
    assert verdict.allowed == (verdict.reason == "")
    assert not inside(text + "x", [ip_network("0.0.0.0/0")])


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 32))
@example(0x0A000001, 0x0A000000, 8)
@pytest.mark.threat("N29")
def test_allowed_networks_open_exactly_themselves(number: int, network: int, prefix: int) -> None:
    address = str(IPv4Address(number))
    opened = [ip_network((network & ~((1 << 32 - prefix) - 1), prefix))]
    is_inside = number >> 32 - prefix == network >> 32 - prefix
    assert judge(address, opened).allowed == (judge(address).allowed or is_inside)
    assert inside(address, opened) == is_inside


def test_an_allowed_ipv4_network_holds_for_mapped_addresses_and_not_for_translated_ones() -> None:
    opened = [ip_network("10.0.0.0/8")]
    assert judge("::ffff:10.0.0.7", opened).allowed
    assert not judge("64:ff9b::10.0.0.7", opened).allowed
    assert judge("64:ff9b::10.0.0.7", [ip_network("64:ff9b::/96")]).allowed


def test_an_allowed_ipv6_network_opens_no_ipv4_address() -> None:
    opened = [ip_network("fd00::/8"), ip_network("::/0")]
    assert judge("fd12::1", opened[:1]).allowed
    assert not judge("fc12::1", opened[:1]).allowed
    assert not judge("10.0.0.1", opened).allowed
    assert not judge("::ffff:10.0.0.1", opened).allowed


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_localhost_is_opened_only_when_asked_for(address: str) -> None:
    assert judge(address, allow_localhost=True).allowed
    assert not judge(address).allowed


@pytest.mark.parametrize(
    "address", ["127.0.0.2", "127.255.255.254", "::2", "0.0.0.0", "::", "10.0.0.1", "64:ff9b::7f00:1"]
)
def test_localhost_is_no_more_than_two_addresses(address: str) -> None:
    assert not judge(address, allow_localhost=True).allowed
