"""Endpoint URLs: one canonical reading of the good ones, a reason for each of the bad ones."""

# ruff: noqa: RUF001 - look-alike characters are what these tables are about

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_network
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import EndpointUrlInvalid
from daemon.policy.addresses import Network
from daemon.policy.endpoint_url import Target, parse

NETWORKS: tuple[Network, ...] = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def strict(url: str) -> Target:
    return parse(url, allow_localhost=False, allow_networks=())


def refusal(url: str, *, allow_localhost: bool = False, allow_networks: tuple[Network, ...] = ()) -> tuple[str, str]:
    with pytest.raises(EndpointUrlInvalid) as caught:
        parse(url, allow_localhost=allow_localhost, allow_networks=allow_networks)
    assert str(caught.value).startswith("endpoint_url: ")
    return caught.value.kind, str(caught.value).removeprefix("endpoint_url: ")


@pytest.mark.parametrize(
    ("url", "host", "port", "path_and_query", "canonical"),
    [
        ("https://example.com", "example.com", 443, "/", "https://example.com/"),
        ("HTTPS://Example.COM:443/A?b=C", "example.com", 443, "/A?b=C", "https://example.com/A?b=C"),
        ("https://h.example:8443?x", "h.example", 8443, "/?x", "https://h.example:8443/?x"),
        ("https://h.example:00443/", "h.example", 443, "/", "https://h.example/"),
        ("https://h.example//a/../b;c?d?e/%0d%0a", "h.example", 443, "//a/../b;c?d?e/%0d%0a", None),
        ("https://my_host.example/~x|{}", "my_host.example", 443, "/~x|{}", None),
        ("https://1.1.1.1/", "1.1.1.1", 443, "/", None),
        ("https://[2606:4700:0:0::1111]:8443/", "2606:4700::1111", 8443, "/", "https://[2606:4700::1111]:8443/"),
        ("https://[64:FF9B::1.1.1.1]/", "64:ff9b::101:101", 443, "/", "https://[64:ff9b::101:101]/"),
        ("https://bücher.example/", "xn--bcher-kva.example", 443, "/", "https://xn--bcher-kva.example/"),
        ("https://BÜCHER.example/", "xn--bcher-kva.example", 443, "/", "https://xn--bcher-kva.example/"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443, "/", None),
        ("https://例え.テスト/", "xn--r8jz45g.xn--zckzah", 443, "/", "https://xn--r8jz45g.xn--zckzah/"),
        ("https://" + "a" * 63 + ".example/", "a" * 63 + ".example", 443, "/", None),
        ("https://h.example/" + "p" * 482, "h.example", 443, "/" + "p" * 482, None),
    ],
)
@pytest.mark.threat("N58")
def test_a_good_url_has_one_canonical_form(
    url: str, host: str, port: int, path_and_query: str, canonical: str | None
) -> None:
    target = strict(url)
    assert target == Target("https", host, port, path_and_query, canonical or url)
    assert strict(target.url) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h.example",
        "//h.example/",
        "file:///etc/passwd",
        "ftp://h.example/",
        "gopher://h/",
        "ws://h.example/",
        "javascript:alert(1)",
        "data:,x",
        "unix:/run/x.sock",
        "https:h.example",
        "https:/h.example",
        "httpss://h.example",
        "http://h.example/",
        "http://1.1.1.1/",
        "http://127.0.0.1/",
        "http://localhost/",
        "http://10.0.0.7/",
        "ftp://a#b",
    ],
)
@pytest.mark.threat("N49-N50")
def test_what_is_not_https_is_a_fault_of_the_scheme(url: str) -> None:
    kind, message = refusal(url)
    assert kind == "scheme"
    assert ("egress.allow_localhost" in message) == (url in {"http://localhost/", "http://127.0.0.1/"})


MALFORMED = {
    "user name": [
        "https://u:p@h.example/",
        "https://@h.example/",
        "https://u@h.example/",
        "https://h.example@1.1.1.1/",
    ],
    "backslash": ["https://127.0.0.1\\@evil.example/", "https://a.example\\/"],
    "fragment": ["https://h.example/#x", "https://evil.example#@127.0.0.1/", "https://h.example#"],
    "space or an invisible": [
        "https://1.1.1.1 &@127.0.0.1# @3.3.3.3/",
        " https://h.example/",
        "https://h.example/\n",
        "https://h.ex\tample/",
        "https://h.example/a\rb",
        "https://h.example/\x00",
        "https://127.0.0.1\x00.example.com/",
        "https://h.example/\x7f",
        "https://h\u200b.example/",
        "https://h\u202e.example/",
        "https://h\xad.example/",
        "https://h.example/\ud800",
        "https://h.example/\u2028",
        "https://h.example/\u3000",
    ],
    "percent sign in its host": ["https://%31%32%37.0.0.1/", "https://h%2eexample/", "https://[fe80::1%25lo]/"],
    "no host": ["https://", "https:///x", "https://:443/", "https://?x"],
    "valid host and port": [
        "https://h.example:80:80/",
        "https://h.example:abc/",
        "https://h.example:-1/",
        "https://h.example:/",
        "https://[::1/",
        "https://::1/",
        "https://h.example:９/",
        "https://h.example:123456/",
        "https://[::1]x/",
        "https://x[::1]/",
    ],
    "port outside": ["https://h.example:0/", "https://h.example:65536/", "https://h.example:99999/"],
    "is not an IPv6 address": [
        "https://[v1.x]/",
        "https://[]/",
        "https://[1.1.1.1]/",
        "https://[:::]/",
        "https://[g::]/",
    ],
    "is a number": [
        "https://127.1/",
        "https://0x7f.1/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://0/",
        "https://017700000001/",
        "https://0177.0.0.1/",
        "https://127.0.0.01/",
        "https://010.8.8.8/",
        "https://1.1/",
        "https://1.2.3.4.5/",
        "https://1.1.1.256/",
        "https://h.example.0x/",
        "https://a.1/",
    ],
    "not a valid international": [
        "https://①②⑦.⓪.⓪.①/",
        "https://１２７.0.0.1/",
        "https://127。0。0。1/",
        "https://ⅼocalhost/",
        "https://evil.example＃.h.example/",
        "https://a／b.example/",
        "https://a？b.example/",
        "https://xn--a.example/",
        "https://xn--zzzzzzz99999.example/",
        "https://bücher..example/",
        "https://.bücher/",
        "https://" + "ü" * 60 + ".example/",
        "https://-ü.example/",
        "https://א1a.example/",
    ],
    "mixes scripts": ["https://раypal.example/", "https://xn--ypal-43d9g.example/", "https://gοogle.example/"],
    "not a valid host name": [
        "https://a..b/",
        "https://.a.example/",
        "https://-a.example/",
        "https://a-.example/",
        "https://" + "a" * 64 + ".example/",
        "https://" + "a." * 130 + "example/",
        "https://xn--/",
        "https://h!.example/",
        "https://h*.example/",
        "https://h,x.example/",
        "https://h'.example/",
    ],
    "ends with a dot": [
        "https://h.example./",
        "https://localhost./",
        "https://127.0.0.1./",
        "https://bücher.example./",
    ],
    "outside ASCII": ["https://h.example/ü", "https://h.example/?ü"],
    "more than 500": ["https://h.example/" + "p" * 483, "https://" + "ü." * 100 + "example/" + "p" * 291],
}


@pytest.mark.parametrize(("url", "words"), [(url, words) for words, urls in MALFORMED.items() for url in urls])
@pytest.mark.threat("N19-N21", "N51-N54", "N56-N57", "N59-N61")
def test_what_is_not_a_plain_url_is_malformed(url: str, words: str) -> None:
    kind, detail = refusal(url)
    assert (kind, words in detail) == ("malformed", True), detail


FORBIDDEN = {
    "host 10.0.0.7 is a private address": ["https://10.0.0.7/", "https://10.0.0.7:8443/x"],
    "host 127.0.0.1 is a loopback address": ["https://127.0.0.1/"],
    "host 169.254.169.254 is a link-local address": ["https://169.254.169.254/latest/meta-data"],
    "host ::1 is a loopback address": ["https://[::1]/", "https://[0:0:0:0:0:0:0:1]/"],
    "host ::ffff:a9fe:a9fe is a link-local address": ["https://[::ffff:169.254.169.254]/"],
    "host 64:ff9b::7f00:1 is a loopback address": ["https://[64:ff9b::127.0.0.1]/"],
    "a name of the machine itself": [
        "https://localhost/",
        "https://LOCALHOST/",
        "https://a.localhost/",
        "https://ip6-localhost/",
        "https://ip6-loopback/",
    ],
    "a name for internal use": [
        "https://metadata.google.internal/",
        "https://printer.local/",
        "https://x.localdomain/",
        "https://nas.home.arpa/",
        "https://x.onion/",
    ],
    "not a full domain name": ["https://intranet/", "https://a/"],
    "port 22 is kept for SSH": ["https://h.example:22/"],
    "port 25 is kept for SMTP": ["https://h.example:25/"],
    "port 5432 is kept for PostgreSQL": ["https://h.example:5432/"],
    "port 6379 is kept for Redis": ["https://h.example:6379/"],
    "port 11211 is kept for memcached": ["https://h.example:11211/"],
}


@pytest.mark.parametrize(("url", "words"), [(url, words) for words, urls in FORBIDDEN.items() for url in urls])
@pytest.mark.threat("N22", "N55")
def test_a_host_or_port_that_must_not_be_called_is_forbidden_with_a_reason(url: str, words: str) -> None:
    kind, detail = refusal(url)
    assert (kind, words in detail) == ("forbidden", True), detail


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_localhost_is_open_to_both_schemes_where_the_operator_says_so(host: str) -> None:
    for scheme in ("http", "https"):
        target = parse(f"{scheme}://{host}:8000/x", allow_localhost=True, allow_networks=())
        assert (target.scheme, target.authority) == (scheme, f"{host}:8000")


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://h.example/", "scheme"),
        ("http://127.0.0.2/", "scheme"),
        ("https://127.0.0.2/", "forbidden"),
        ("https://a.localhost/", "forbidden"),
        ("https://10.0.0.1/", "forbidden"),
    ],
)
def test_leave_for_localhost_opens_nothing_else(url: str, kind: str) -> None:
    assert refusal(url, allow_localhost=True)[0] == kind


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.7:8080/", "https://10.0.0.7/", "http://[fd00::1]/", "https://receiver/", "https://a.internal/"],
)
def test_allowed_networks_open_their_literal_addresses_to_both_schemes_and_internal_names_to_https(url: str) -> None:
    assert parse(url, allow_localhost=False, allow_networks=NETWORKS).url == url


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://receiver/", "scheme"),
        ("http://11.0.0.1/", "scheme"),
        ("http://192.168.0.1/", "scheme"),
        ("https://192.168.0.1/", "forbidden"),
        ("https://localhost/", "forbidden"),
        ("https://[fc00::1]/", "forbidden"),
    ],
)
@pytest.mark.threat("N29")
def test_allowed_networks_open_nothing_else(url: str, kind: str) -> None:
    assert refusal(url, allow_networks=NETWORKS)[0] == kind


def test_loopback_as_an_allowed_network_opens_localhost_to_https_only() -> None:
    loopback = (ip_network("127.0.0.0/8"),)
    assert parse("https://localhost/", allow_localhost=False, allow_networks=loopback).host == "localhost"
    assert refusal("http://localhost/", allow_networks=loopback)[0] == "scheme"


def test_the_authority_leaves_out_the_default_port_only() -> None:
    assert strict("https://h.example/").authority == "h.example"
    assert strict("https://h.example:80/").authority == "h.example:80"
    http = parse("http://127.0.0.1:80/", allow_localhost=True, allow_networks=())
    assert http.authority == "127.0.0.1"


@given(st.text(max_size=40))
def test_whatever_is_accepted_is_read_alike_by_another_parser(text: str) -> None:
    for url in ("https://" + text, "https://h.example/" + text, "https://h.example" + text):
        with suppress(EndpointUrlInvalid):
            target = strict(url)
            other = urlsplit(target.url)
            assert (other.hostname, other.port or 443) == (target.host, target.port)
            assert other.path + (f"?{other.query}" if other.query else "") == target.path_and_query.rstrip("?")
            assert target.url.isascii()
            assert target.url.isprintable()
            assert strict(target.url) == target
