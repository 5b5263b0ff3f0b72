"""A customer's endpoint URL: read strictly, once, into the parts that the sender uses, or refused with a reason.

Own reading rather than `urllib` or a client's: those repair what they read (they strip tabs, see host `b` in
`//a/@b` once its slash is a backslash, accept port 99999), and every repair can store one host and connect to another.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final, Literal

import idna

from daemon.errors import EndpointUrlInvalid
from daemon.policy.addresses import Network, inside, judge

MAX_CHARACTERS: Final = 500
LOCALHOST: Final = frozenset({"localhost", "127.0.0.1", "::1"})
"""The hosts that `egress.allow_localhost` opens, also to plain http."""

_URL: Final = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?]*)(?P<rest>.*)", re.IGNORECASE)
_AUTHORITY: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
_PATH_AND_QUERY: Final = re.compile(r"[\x21-\x7e]*")
_DOTTED_QUAD: Final = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?!$)|$)){4}")
_NUMERIC_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")

_INTERNAL_SUFFIXES: Final = ("localdomain", "local", "internal", "home.arpa", "onion")
_LOCAL_NAMES: Final = frozenset({"localhost", "localhost6", "ip6-localhost", "ip6-loopback"})
_JOINT_SCRIPTS: Final = frozenset({"LATIN", "CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO"})

_DENIED_PORTS: Final = {
    21: "FTP", 22: "SSH", 23: "Telnet", 25: "SMTP", 53: "DNS", 110: "POP3", 111: "portmapper", 119: "NNTP",
    135: "RPC", 139: "NetBIOS", 143: "IMAP", 389: "LDAP", 445: "SMB", 465: "SMTP", 514: "syslog", 515: "LPD",
    587: "SMTP", 631: "IPP", 636: "LDAP", 873: "rsync", 993: "IMAP", 995: "POP3", 1433: "SQL Server", 1521: "Oracle",
    2049: "NFS", 2375: "Docker", 2376: "Docker", 3306: "MySQL", 5432: "PostgreSQL", 6000: "X11", 6379: "Redis",
    6432: "PgBouncer", 6667: "IRC", 11211: "memcached", 27017: "MongoDB",
}  # fmt: skip
"""Ports of other protocols: no webhook receiver lives there, and some servers take the lines of a POST for commands."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes. Equal targets may share connections, others never.

    `host` is an A-label, a dotted quad or an IPv6 address without brackets, lower case: the name for DNS, SNI and the
    certificate. `path_and_query` begins with `/` and is printable ASCII. `url` is the canonical form that is stored.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    path_and_query: str
    url: str

    @property
    def authority(self) -> str:
        """`host[:port]` as the Host header carries it: brackets around IPv6, no default port."""
        return _authority(self.scheme, self.host, self.port)

    @property
    def is_literal(self) -> bool:
        """Whether the host is an IP address and needs no look-up."""
        return is_address(self.host)


def parse(url: str, *, allow_localhost: bool, allow_networks: Sequence[Network]) -> Target:
    """Read an endpoint URL of at most 500 characters by the rules of the contract's section 4.

    `allow_localhost` and `allow_networks` are the operator's `egress` settings. Raises EndpointUrlInvalid: kind
    `scheme` for a URL that is not https where it must be, `malformed` for one that is no plain URL, `forbidden` for
    a host or port that must not be called. A host name is judged here by its spelling only, at connect by what it
    resolves to.
    """
    _check_characters(url)
    match = _URL.fullmatch(url)
    if match is None:
        raise _malformed("is not a URL")
    scheme: Literal["http", "https"] = "https" if match["scheme"].lower() == "https" else "http"
    host_text, port = _split_authority(match["authority"], scheme)
    host = _host(host_text)
    if scheme == "http" and not (
        (allow_localhost and host in LOCALHOST) or (is_address(host) and inside(host, allow_networks))
    ):
        hint = ", unless the operator sets egress.allow_localhost = true" if host in LOCALHOST else ""
        raise EndpointUrlInvalid(
            "scheme", f"endpoint_url: must be https, plain http is not accepted for this host{hint}"
        )
    _check_port(port)
    _check_host(host, allow_localhost=allow_localhost, allow_networks=allow_networks)
    path_and_query = _path_and_query(match["rest"])
    canonical = f"{scheme}://{_authority(scheme, host, port)}{path_and_query}"
    if len(canonical) > MAX_CHARACTERS:  # an A-label can be longer than the name it stands for
        raise _malformed(f"has more than {MAX_CHARACTERS} characters in its ASCII form")
    return Target(scheme, host, port, path_and_query, canonical)


def _malformed(what: str) -> EndpointUrlInvalid:
    return EndpointUrlInvalid("malformed", f"endpoint_url: {what}")


def _forbidden(what: str) -> EndpointUrlInvalid:
    return EndpointUrlInvalid("forbidden", f"endpoint_url: {what}")


def _authority(scheme: str, host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port == (443 if scheme == "https" else 80) else f"{shown}:{port}"


def _check_characters(url: str) -> None:
    if len(url) > MAX_CHARACTERS:
        raise _malformed(f"has more than {MAX_CHARACTERS} characters")
    for character in url:
        # Cc, Cf, Cs, Co, Cn: control, invisible, surrogate, private, unassigned; Z*: every kind of space.
        if unicodedata.category(character)[0] in "CZ":
            raise _malformed(f"contains a space or an invisible character (U+{ord(character):04X})")
    if not url.lower().startswith(("https://", "http://")):
        raise EndpointUrlInvalid("scheme", "endpoint_url: must begin with https://")
    if "\\" in url:
        raise _malformed("contains a backslash")
    if "#" in url:
        raise _malformed("has a fragment (#…), which is never sent")


def _split_authority(authority: str, scheme: str) -> tuple[str, int]:
    if "@" in authority:
        raise _malformed("contains a user name or password, which would be stored in the clear")
    if "%" in authority:
        raise _malformed("has a percent sign in its host")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise _malformed("has no valid host and port")
    if not match["host"]:
        raise _malformed("has no host")
    port = int(match["port"]) if match["port"] else 443 if scheme == "https" else 80
    if not 1 <= port <= 65535:
        raise _malformed("has a port outside 1-65535")
    return match["host"], port


def _check_port(port: int) -> None:
    if port in _DENIED_PORTS:
        raise _forbidden(f"port {port} is kept for {_DENIED_PORTS[port]}")


def _path_and_query(rest: str) -> str:
    if not _PATH_AND_QUERY.fullmatch(rest):
        raise _malformed("has characters outside ASCII in its path or query; write them percent-encoded")
    return rest if rest.startswith("/") else "/" + rest


def _host(text: str) -> str:
    """The host in the one form that is stored, or EndpointUrlInvalid where it has no such form."""
    if text.startswith("["):
        try:
            return IPv6Address(text[1:-1]).compressed
        except ValueError:
            raise _malformed(f"{text} is not an IPv6 address") from None
    host = text.lower()
    if host.endswith("."):
        raise _malformed("the host ends with a dot; write it without")
    if not host.isascii():
        return _a_labels(host)
    labels = host.split(".")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        # The resolver reads 127.1, 0x7f.1, 0177.0.0.1 and 2130706433 as addresses: only the plain spelling passes.
        if not _DOTTED_QUAD.fullmatch(host):
            raise _malformed(f"host {host} is a number; write an IPv4 address as four decimal numbers without zeros")
        return host
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _malformed(f"host {host} is not a valid host name")
    if any(label.startswith("xn--") for label in labels):
        return _a_labels(host)
    return host


def _a_labels(host: str) -> str:
    """The ASCII form of an internationalised name (RFC 5891), strict: nothing is mapped but upper case."""
    try:
        encoded = idna.encode(host, strict=True).decode("ascii")
        shown = idna.decode(encoded)
    except (idna.IDNAError, UnicodeError):
        raise _malformed("the host is not a valid international domain name") from None
    for label in shown.split("."):
        scripts = {
            unicodedata.name(character, "UNNAMED").split(" ")[0]
            for character in label
            if unicodedata.category(character) in {"Ll", "Lo", "Lt", "Lu"}
        }
        if len(scripts) > 1 and not scripts <= _JOINT_SCRIPTS:
            raise _malformed("the host mixes scripts inside one label, as look-alike names do")
    if _NUMERIC_LABEL.fullmatch(encoded.rsplit(".", 1)[-1]):
        raise _malformed("the host ends in a number")
    return encoded


def is_address(host: str) -> bool:
    """Whether a host in its stored form is an IP address rather than a name."""
    return ":" in host or _DOTTED_QUAD.fullmatch(host) is not None


def _check_host(host: str, *, allow_localhost: bool, allow_networks: Sequence[Network]) -> None:
    if allow_localhost and host in LOCALHOST:
        return
    if is_address(host):
        verdict = judge(host, allow_networks)
        if not verdict.allowed:
            raise _forbidden(f"host {host} is {verdict.reason}")
        return
    if host in _LOCAL_NAMES or host.endswith(".localhost"):
        if inside("127.0.0.1", allow_networks) or inside("::1", allow_networks):
            return
        raise _forbidden(f"host {host} is a name of the machine itself")
    if allow_networks:
        return  # the operator's own names may live there; what they resolve to is judged at connect
    if any(host == suffix or host.endswith("." + suffix) for suffix in _INTERNAL_SUFFIXES):
        raise _forbidden(f"host {host} is a name for internal use")
    if "." not in host:
        raise _forbidden(f"host {host} is not a full domain name")
