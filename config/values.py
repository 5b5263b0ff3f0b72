"""The shapes of single settings: numbers, choices, lists, addresses, URLs, keys.

A `Reader` takes a value as a file or the environment has it, and returns it as the program uses it. What is not as
expected is a ValueError that says what is: "should be …". Nothing that may be secret stands in its text.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Final, LiteralString, TypeVar, cast

EMBEDDED: Final = "embedded"
SEALING_KEY_BYTES: Final = 32
_HOST_PORT: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):(?P<port>[0-9]{1,5})")
_ORIGIN: Final = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?P<port>:[0-9]{1,5})?")
_COLLECTOR: Final = re.compile(_ORIGIN.pattern + r"(?:/[!-~]*)?")
_LIBPQ_URL: Final = re.compile(
    r"postgres(?:ql)?://(?:[^\s/?#]*@)?(?P<hosts>[^\s/?#@]*)(?:/[^\s?#]*)?(?:\?[^\s#]*)?", re.ASCII
)
_LIBPQ_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.%-]*)(?::(?P<port>[0-9]{1,5})?)?")
_FLAGS: Final = {
    "1": True, "true": True, "t": True, "yes": True, "y": True, "on": True,
    "0": False, "false": False, "f": False, "no": False, "n": False, "off": False,
}  # fmt: skip

T = TypeVar("T")
Word = TypeVar("Word", bound=LiteralString)
Reader = Callable[[object], T]
Network = IPv4Network | IPv6Network


class Unfit(ValueError):
    """What a value should be instead."""


class UnfitItems(ValueError):
    """The same for a list: place, value and what it should be, of each item that does not fit."""

    def __init__(self, items: Iterable[tuple[int, object, str]]) -> None:
        super().__init__("has items that do not fit")
        self.items: tuple[tuple[int, object, str], ...] = tuple(items)


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A text that shows in no repr, and so in no log and no traceback."""

    _text: str

    def get_secret_value(self) -> str:
        """The text."""
        return self._text


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a setting: how a given value is read, what it is for, and whether its value may be shown."""

    read: Reader[object]
    description: str
    shown: bool


def setting(default: T, read: Reader[T], description: str, *, shown: bool = True) -> T:
    """A field of a dataclass. What is not `shown`, since it may hold a password, stands in no fault and no repr."""
    return field(default=default, repr=shown, metadata={"setting": Setting(read, description, shown)})


# -- numbers, switches, choices ---------------------------------------------------------------------------------------


def number(value: object) -> float:
    """A finite number, or a text that is one."""
    if isinstance(value, bool):  # Python takes True for 1: `timeout_s = true` would be a second
        raise Unfit("should not be true or false")
    if not isinstance(value, int | float | str):
        raise Unfit("should be a number")
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise Unfit("should be a number") from None
    if not math.isfinite(found):
        raise Unfit("should be a finite number")
    return found


def whole(least: int, most: int) -> Reader[int]:
    """A whole number from `least` to `most`."""

    def read(value: object) -> int:
        found = _between(number(value), least, most)
        if not found.is_integer():
            raise Unfit("should be a whole number")
        return int(found)

    return read


def seconds(most: int, *, none_at_all: bool = False) -> Reader[float]:
    """Seconds, `most` at most, and more than zero unless there may be `none_at_all`."""

    def read(value: object) -> float:
        found = number(value)
        if found <= 0 and not none_at_all:
            raise Unfit("should be greater than 0")
        return _between(found, 0, most)

    return read


def share(value: object) -> float:
    """A part of a whole, from 0 to 1."""
    return _between(number(value), 0, 1)


def _between(found: float, least: int, most: int) -> float:
    if found < least:
        raise Unfit(f"should be greater than or equal to {least}")
    if found > most:
        raise Unfit(f"should be less than or equal to {most}")
    return found


def flag(value: object) -> bool:
    """True or false, or one of the usual words for them."""
    found = _FLAGS.get(str(value).lower()) if isinstance(value, bool | int | str) else None
    if found is None:
        raise Unfit("should be true or false")
    return found


def one_of(*choices: Word) -> Reader[Word]:
    """One of these, exactly."""

    def read(value: object) -> Word:
        for choice in choices:
            if choice == value:
                return choice
        *others, last = (repr(choice) for choice in choices)
        raise Unfit(f"should be {', '.join(others)} or {last}")

    return read


# -- lists, and what may be missing -----------------------------------------------------------------------------------


def listed(item: Reader[T], least: int = 0, most: int = 10_000) -> Reader[tuple[T, ...]]:
    """A list of so many items. As text, which the environment has, it is JSON, or values between commas."""

    def read(value: object) -> tuple[T, ...]:
        parts = _parts(value)
        if len(parts) < least:
            raise Unfit(f"should have at least {least} item{'s' * (least > 1)}")
        if len(parts) > most:
            raise Unfit(f"should have at most {most} items")
        found: list[T] = []
        unfit: list[tuple[int, object, str]] = []
        for place, part in enumerate(parts):
            try:
                found.append(item(part))
            except ValueError as e:
                unfit.append((place, part, str(e)))
        if unfit:
            raise UnfitItems(unfit)
        return tuple(found)

    return read


def _parts(value: object) -> list[object]:
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return [part.strip() for part in value.split(",")] if value.strip() else []
        try:
            value = cast("object", json.loads(value))
        except (ValueError, RecursionError):
            raise Unfit("should be a JSON list or values between commas") from None
    if not isinstance(value, list | tuple):
        raise Unfit("should be a list")
    return list(cast("list[object]", value))


def optional(read: Reader[T]) -> Reader[T | None]:
    """None for what is set to nothing."""
    return lambda value: None if value == "" else read(value)


def secret(read: Reader[str]) -> Reader[Secret]:
    """A text that nobody shall see, once it was read."""
    return lambda value: Secret(read(value))


# -- texts ------------------------------------------------------------------------------------------------------------


def text(value: object) -> str:
    """Any text that UTF-8 can hold: a variable of the environment may have other bytes."""
    if not isinstance(value, str):
        raise Unfit("should be a valid string")
    try:
        _ = value.encode()
    except UnicodeEncodeError:
        raise Unfit("should be UTF-8 text") from None
    return value


def bind(value: object) -> str:
    """An address to listen on; port 0 takes a free one."""
    return _host_port(text(value), 0)


def proxy_url(value: object) -> str:
    """A CONNECT proxy."""
    url = text(value)
    if not url.startswith("http://"):
        raise Unfit("should be http://host:port")
    _ = _host_port(url.removeprefix("http://"), 1)
    return url


def public_url(value: object) -> str:
    """An origin, as browsers call it."""
    url = text(value)
    match = _ORIGIN.fullmatch(url)
    if match is None:
        raise Unfit("should be https://host or http://host:port, without a path")
    if match["port"] is not None:
        _ = _host_port(url.partition("//")[2], 1)
    return url


def collector_url(value: object) -> str:
    """Where traces are sent, without userinfo, which is a header's."""
    url = text(value)
    match = _COLLECTOR.fullmatch(url)
    if match is None:
        raise Unfit("should be a URL such as http://127.0.0.1:4318/v1/traces")
    if match["port"] is not None:
        _ = _host_port(url.split("/")[2], 1)
    return url


def _host_port(found: str, lowest_port: int) -> str:
    match = _HOST_PORT.fullmatch(found)
    if match is None or not lowest_port <= int(match["port"]) <= 65535:
        raise Unfit(f"should be host:port or [v6 address]:port, port {lowest_port}–65535")
    if match["host"].startswith("["):
        _ = IPv6Address(match["host"][1:-1])
    return found


def libpq_url(value: object) -> str:
    """Libpq's own URL form, several hosts allowed; what its parameters mean is left to libpq."""
    url = text(value)
    match = _LIBPQ_URL.fullmatch(url)
    if match is None:
        raise Unfit("should be a URL such as postgresql://user:password@host:5432/database")
    for host in match["hosts"].split(","):
        parts = _LIBPQ_HOST.fullmatch(host)
        if parts is None or not 0 < int(parts["port"] or 5432) <= 65535:
            raise Unfit("has a host that is not name:port")
    return url


def database_url(value: object) -> str:
    """The same, or `EMBEDDED`."""
    return EMBEDDED if value == EMBEDDED else libpq_url(value)


def sealing_keys(lines: str) -> list[bytes]:
    """The keys in a text, one a line; the first one seals. Raises ValueError where one is malformed, or none there."""
    try:
        keys = [base64.b64decode(word, validate=True) for word in lines.split()]
    except (binascii.Error, ValueError):
        keys = []
    if not keys or any(len(key) != SEALING_KEY_BYTES for key in keys):
        raise Unfit("should be the base64 text of 32 bytes: openssl rand -base64 32; or several such lines")
    return keys


def sealing_key(value: object) -> str:
    """The text of such keys."""
    lines = text(value)
    _ = sealing_keys(lines)
    return lines


def network(value: object) -> Network:
    """A network as CIDR."""
    if isinstance(value, Network):
        return value
    if not isinstance(value, str):
        raise Unfit("should be a network such as '10.1.0.0/16'")
    return ip_network(value)


def directory(value: object) -> Path:
    """A path, made absolute; it need not exist."""
    if not isinstance(value, str | Path):
        raise Unfit("should be a path")
    path = Path(text(str(value)))
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise Unfit(f"there is no home directory for {path.parts[0]}") from None
