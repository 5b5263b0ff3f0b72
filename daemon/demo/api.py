"""The HTTP API as a client in the standard library sees it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Final, cast
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from daemon.demo.programs import DemoFailed

BASE: Final = "/api/v1/ecosystem"
_REQUEST_S: Final = 10.0

_opener: Final = build_opener(ProxyHandler({}))  # the daemon is on this machine, whatever HTTP_PROXY says


class Api:
    """The API at `origin`, as in `http://127.0.0.1:8080`."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.key = ""

    def ready(self) -> bool:
        """Whether the daemon is ready for work. Never raises."""
        try:
            with _opener.open(f"{self.origin}/readyz", timeout=_REQUEST_S) as answer:
                return answer.status == 200
        except (URLError, OSError):
            return False

    def call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, object] | None:
        """The answer's object; None for a 401 or 404. Raises DemoFailed for anything else that is no success."""
        request = Request(  # noqa: S310 http, by construction
            self.origin + BASE + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        try:
            with _opener.open(request, timeout=_REQUEST_S) as answer:
                return cast("dict[str, object]", json.load(answer))
        except HTTPError as e:
            if e.code in {401, 404}:
                return None
            raise DemoFailed(f"{method} {path} was answered with {e.code}: {e.read(1000).decode()}") from None
        except (URLError, OSError) as e:
            raise DemoFailed(f"{method} {path} failed: {e}") from None

    def curl_line(self, path: str, body: Mapping[str, object]) -> str:
        """A line for a shell that POSTs `body`."""
        return shlex.join(
            [
                "curl", "-sS", self.origin + BASE + path,
                "-H", f"Authorization: Bearer {self.key}",
                "-H", "Content-Type: application/json",
                "-d", json.dumps(body),
            ]
        )  # fmt: skip
