"""The operator's egress proxy: a CONNECT tunnel in front of the endpoint (RFC 9110 section 9.3.6)."""

from __future__ import annotations

import base64
import re
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

import trio

from daemon.errors import SettingsInvalid
from daemon.policy.endpoint_url import Target
from daemon.sender.failure import Failure

_MAX_HEAD_BYTES: Final = 8 * 1024
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: [^\r\n]*)?")


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where the proxy listens. `authorization` is the header's value, with the operator's password in it."""

    host: str
    port: int
    authorization: str | None


def parse_proxy(url: str) -> Proxy:
    """Read `egress.proxy_url`, `http://[user:password@]host:port`. Raises SettingsInvalid, without the password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise SettingsInvalid("egress.proxy_url: is not a URL") from None
    if parts.scheme != "http" or not host or not host.isascii() or parts.path not in {"", "/"} or parts.query:
        raise SettingsInvalid("egress.proxy_url: must be http://[user:password@]host:port")
    authorization = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(credentials.encode()).decode("ascii")
    return Proxy(host, port or 3128, authorization)


async def open_tunnel(sock: socket.socket, proxy: Proxy, target: Target) -> Failure | None:
    """Ask the proxy behind `sock` for a tunnel to `target`; None once it stands. The caller closes the socket."""
    name = f"[{target.host}]:{target.port}" if ":" in target.host else f"{target.host}:{target.port}"
    credentials = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    stream = trio.socket.from_stdlib_socket(sock)
    head = b""
    try:
        # A few hundred bytes on a fresh connection: the kernel takes them whole.
        await stream.send(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n{credentials}\r\n".encode("ascii"))
        while b"\r\n\r\n" not in head:
            data = await stream.recv(_MAX_HEAD_BYTES)
            head += data
            if not data or len(head) > _MAX_HEAD_BYTES:
                return Failure("connect", "The egress proxy gave no valid answer.")
    except OSError:
        return Failure("connect", "The egress proxy closed the connection.")
    match = _STATUS_LINE.fullmatch(head.split(b"\r\n", 1)[0])
    if match is None or not head.endswith(b"\r\n\r\n"):  # the endpoint cannot have spoken yet: we speak first
        return Failure("connect", "The egress proxy gave no valid answer.")
    status = int(match[1])
    if not 200 <= status <= 299:
        return Failure("connect", f"The egress proxy refused the connection ({status}).")
    return None
