"""A browser as far as a server sees one: a connection that is kept, cookies, compression; counts bytes and time."""

from __future__ import annotations

import gzip
import http.client
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from bench.parts import START_S

HEADERS: Final = {"Accept": "text/html,*/*", "Accept-Encoding": "gzip, deflate, br", "Accept-Language": "en"}


@dataclass(frozen=True)
class Answer:
    """What came back. `took_ms`: from the first byte of the request to the last of the answer, both on loopback.

    `wire_bytes`: head and body as they were sent; `text` is what they mean.
    """

    status: int
    headers: Mapping[str, str]
    text: str
    took_ms: float
    wire_bytes: int


class Browser:
    """Of one visitor of `http://127.0.0.1:port`. Follows nothing by itself."""

    def __init__(self, port: int, headers: Mapping[str, str] | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
        self._headers = HEADERS | dict(headers or {})
        self._cookies: dict[str, str] = {}

    def get(self, url: str, **headers: str) -> Answer:
        """GET a path, or a whole URL of this server."""
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        sent = self._headers | headers | {"Cookie": "; ".join(f"{k}={v}" for k, v in self._cookies.items())}
        with suppress(http.client.RemoteDisconnected, BrokenPipeError):  # the server ends a connection now and then
            return self._get(path, sent)
        self._connection.close()
        return self._get(path, sent)

    def _get(self, path: str, headers: Mapping[str, str]) -> Answer:
        if self._connection.sock is None:
            self._connection.connect()
        began = time.monotonic()
        self._connection.request("GET", path, headers=dict(headers))
        response = self._connection.getresponse()
        body = response.read()
        took_ms = (time.monotonic() - began) * 1000
        fields = response.getheaders()
        lines = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{name}: {value}" for name, value in fields)]
        wire_bytes = sum(len(line) + 2 for line in lines) + 2 + len(body)
        for name, value in fields:
            if name.lower() == "set-cookie":
                key, _, kept = value.partition(";")[0].partition("=")
                self._cookies[key] = kept
        named = {name.lower(): value for name, value in fields}
        plain = gzip.decompress(body) if named.get("content-encoding") == "gzip" else body
        return Answer(response.status, named, plain.decode("utf-8", "replace"), took_ms, wire_bytes)
