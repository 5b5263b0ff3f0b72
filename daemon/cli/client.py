"""The HTTP API as the commands see it. Imports httpx, which takes as long to load as all the rest: import this late."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import click
import httpx

from daemon.cli.shared import settings_from
from daemon.errors import DealixError

Json = dict[str, object]
Query = Mapping[str, str | int | bool]

BASE: Final = "/api/v1/ecosystem"
_REQUEST_S: Final = 15.0
_SILENCE_S: Final = 40.0
"""A stream's heartbeat comes every 15 s."""
_HERE: Final = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}  # noqa: S104 nobody binds here


class ApiUnreachable(DealixError):
    """No answer, or not a whole one."""


class ApiRefused(DealixError):
    """An answer that is no success. `retry_after_s` is None where it says nothing about coming back."""

    def __init__(self, status: int, detail: str, *, retry_after_s: float | None) -> None:
        super().__init__(f"the API answered {status}: {detail}")
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Message:
    """One message of an event stream; `data` is empty where it only moves the cursor, `id`, on."""

    id: str
    data: bytes


class Api:
    """The API at `url`, asked with `key`."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self._client = httpx.Client(
            base_url=url.rstrip("/") + BASE,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_REQUEST_S,
            trust_env=httpx.URL(url).host not in _HERE,
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def get(self, path: str, query: Query | None = None) -> Json:
        """What a GET answers. Raises ApiUnreachable, ApiRefused."""
        return self._ask("GET", path, query, None)

    def post(self, path: str, body: Json | None = None, query: Query | None = None) -> Json:
        """What a POST answers. Raises ApiUnreachable, ApiRefused."""
        return self._ask("POST", path, query, body)

    def _ask(self, method: str, path: str, query: Query | None, body: Json | None) -> Json:
        with self._told():
            answer = self._client.request(method, path, params=query, json=body)
            _check(answer)
            return cast("Json", answer.json())

    @contextmanager
    def stream(self, path: str, query: Query, last_id: str | None) -> Generator[Iterator[Message]]:
        """The messages of an event stream, until the server ends it. Raises as `get`, then and later."""
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        timeout = httpx.Timeout(_REQUEST_S, read=_SILENCE_S)
        with self._told(), self._client.stream("GET", path, params=query, headers=headers, timeout=timeout) as answer:
            if not answer.is_success:
                answer.read()
            _check(answer)
            yield _messages(answer)

    @contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except (httpx.TransportError, json.JSONDecodeError) as e:
            raise ApiUnreachable(f"{self.url}: {e or type(e).__name__}") from e
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as e:
            raise click.UsageError(f"{self.url}: {e}") from e


@contextmanager
def connected(api_url: str | None, config_file: Path | None) -> Generator[Api]:
    """The API at `api_url`, else where the configuration has the daemon listen. The key is DEALIX_API_KEY."""
    key = os.environ.get("DEALIX_API_KEY")
    if not key:
        raise click.UsageError("Set DEALIX_API_KEY to a key: export DEALIX_API_KEY=$(dealix keys create --customer ID)")
    api = Api(api_url or f"http://{settings_from(config_file).api.bind}", key)
    try:
        yield api
    finally:
        api.close()


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    try:
        detail = str(cast("Json", answer.json())["detail"])
    except (ValueError, KeyError, TypeError):
        detail = answer.reason_phrase
    if answer.status_code == 401:
        detail += " The one in DEALIX_API_KEY is not valid there."
    after = answer.headers.get("Retry-After", "")
    raise ApiRefused(answer.status_code, detail, retry_after_s=float(after) if after.isdecimal() else None)


def _messages(answer: httpx.Response) -> Iterator[Message]:
    """Whole messages only. Lines end in LF alone: httpx's own lines would also end within a JSON text, at U+2028."""
    rest = b""
    for chunk in answer.iter_bytes():
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            fields = {name: value for name, _, value in (line.partition(b": ") for line in block.split(b"\n"))}
            yield Message(fields.get(b"id", b"").decode(), fields.get(b"data", b""))
