"""The shapes of single settings: lists, addresses, URLs, keys. Each raises ValueError that says what is expected."""

from __future__ import annotations

import base64
import binascii
import json
import re
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Final, cast

from pydantic import AfterValidator, BeforeValidator, SecretStr

EMBEDDED: Final = "embedded"
SEALING_KEY_BYTES: Final = 32
_HOST_PORT: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):(?P<port>[0-9]{1,5})")
_ORIGIN: Final = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?P<port>:[0-9]{1,5})?")
_COLLECTOR: Final = re.compile(_ORIGIN.pattern + r"(?:/[!-~]*)?")
_LIBPQ_URL: Final = re.compile(
    r"postgres(?:ql)?://(?:[^\s/?#]*@)?(?P<hosts>[^\s/?#@]*)(?:/[^\s?#]*)?(?:\?[^\s#]*)?", re.ASCII
)
_LIBPQ_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.%-]*)(?::(?P<port>[0-9]{1,5})?)?")


def _listed(value: object) -> object:
    """A list written as text, as the environment has it: JSON, or values between commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return cast("object", json.loads(value))
        except ValueError:
            raise ValueError("should be a JSON list or values between commas") from None
    return [part.strip() for part in value.split(",")] if value.strip() else []


def _empty_is_none(value: object) -> object:
    """An optional setting that is set to nothing is not set."""
    return None if value == "" else value


def _host_port(text: str, lowest_port: int) -> str:
    match = _HOST_PORT.fullmatch(text)
    if match is None or not lowest_port <= int(match["port"]) <= 65535:
        raise ValueError(f"should be host:port or [v6 address]:port, port {lowest_port}–65535")
    if match["host"].startswith("["):
        _ = IPv6Address(match["host"][1:-1])
    return text


def _bind(text: str) -> str:
    return _host_port(text, 0)


def _proxy(url: str) -> str:
    if not url.startswith("http://"):
        raise ValueError("should be http://host:port")
    _ = _host_port(url.removeprefix("http://"), 1)
    return url


def _public_url(url: str) -> str:
    match = _ORIGIN.fullmatch(url)
    if match is None:
        raise ValueError("should be https://host or http://host:port, without a path")
    if match["port"] is not None:
        _ = _host_port(url.partition("//")[2], 1)
    return url


def _collector_url(url: str) -> str:
    match = _COLLECTOR.fullmatch(url)
    if match is None:
        raise ValueError("should be a URL such as http://127.0.0.1:4318/v1/traces")
    if match["port"] is not None:
        _ = _host_port(url.split("/")[2], 1)
    return url


def _libpq_url(secret: SecretStr) -> SecretStr:
    """Libpq's own URL form, several hosts allowed; what its parameters mean is left to libpq."""
    match = _LIBPQ_URL.fullmatch(secret.get_secret_value())
    if match is None:
        raise ValueError("should be a URL such as postgresql://user:password@host:5432/database")
    for host in match["hosts"].split(","):
        parts = _LIBPQ_HOST.fullmatch(host)
        if parts is None or not 0 < int(parts["port"] or 5432) <= 65535:
            raise ValueError("has a host that is not name:port")
    return secret


def _database(secret: SecretStr) -> SecretStr:
    return secret if secret.get_secret_value() == EMBEDDED else _libpq_url(secret)


def sealing_keys(text: str) -> list[bytes]:
    """The keys in a text, one a line; the first one seals. Raises ValueError where one is malformed, or none there."""
    try:
        keys = [base64.b64decode(word, validate=True) for word in text.split()]
    except (binascii.Error, ValueError):
        keys = []
    if not keys or any(len(key) != SEALING_KEY_BYTES for key in keys):
        raise ValueError("should be the base64 text of 32 bytes: openssl rand -base64 32; or several such lines")
    return keys


def _sealing_keys(secret: SecretStr) -> SecretStr:
    _ = sealing_keys(secret.get_secret_value())
    return secret


def _network(value: object) -> IPv4Network | IPv6Network:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError("should be a network such as '10.1.0.0/16'")  # noqa: TRY004 - pydantic collects ValueErrors
    return ip_network(value)


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"there is no home directory for {path.parts[0]}") from None


Listed = BeforeValidator(_listed)
Optional = BeforeValidator(_empty_is_none)
Bind = Annotated[str, AfterValidator(_bind)]
PublicUrl = Annotated[str, AfterValidator(_public_url)]
CollectorUrl = Annotated[str, AfterValidator(_collector_url)]
ProxyUrl = Annotated[str, AfterValidator(_proxy)]
LibpqUrl = Annotated[SecretStr, AfterValidator(_libpq_url)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database)]
SealingKeys = Annotated[SecretStr, AfterValidator(_sealing_keys)]
DataDir = Annotated[Path, AfterValidator(_absolute)]
Networks = Annotated[tuple[Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)], ...], Listed]
