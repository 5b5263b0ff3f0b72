"""`dealix listen` at work: each event of a stream forwarded to a local URL, signed as an endpoint's would be."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import httpx
import msgspec

from daemon import clock
from daemon.cli.client import Api, ApiRefused, ApiUnreachable, Message, Query
from daemon.policy import signing
from daemon.policy.signing import Signer, SigningKey

PATH: Final = "/events/stream"
_PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0)
_COME_AGAIN: Final = {429, 500, 502, 503, 504}
_FORWARD_S: Final = 10.0
"""As long as a delivery may take."""


class Streamed(msgspec.Struct, frozen=True):
    """An event of the stream. `body` is what an endpoint gets, byte for byte."""

    event_id: str
    event_type: str
    created_at: str
    body: str


@dataclass(frozen=True, slots=True)
class Forwarder:
    """POSTs to `url` with signatures by `secret`. One attempt for each event: whoever develops sees what went wrong."""

    url: str
    secret: str
    client: httpx.Client

    @classmethod
    def to(cls, url: str, secret: str) -> Forwarder:
        """No redirects, and no proxy on the way to one's own machine."""
        return cls(url, secret, httpx.Client(timeout=_FORWARD_S, follow_redirects=False, trust_env=False))

    def forward(self, event: Streamed) -> str:
        """What came of it, in a word or two."""
        body = event.body.encode()
        t = clock.unix_s()
        signed = Signer(SigningKey.of(self.secret)).sign(event_id=event.event_id, body=body, t=t)
        headers = signing.headers(
            event_id=event.event_id,
            event_type=event.event_type,
            attempt=1,
            dealix_signature=signed.dealix,
            webhook_signature=signed.webhook,
            t=t,
        )
        began = time.monotonic()
        try:
            status = str(self.client.post(self.url, content=body, headers=headers).status_code)
        except httpx.HTTPError as e:
            status = str(e) or type(e).__name__
        return f"{status}  {(time.monotonic() - began) * 1000:.0f} ms"


class Listening:
    """Follows a stream over breaks: an event counts as got when it was forwarded."""

    def __init__(self, api: Api, query: Query, forwarder: Forwarder | None, say: Callable[[str], None]) -> None:
        self._api = api
        self._query = query
        self._forwarder = forwarder
        self._say = say
        self._last_id: str | None = None
        self._broken = 0
        self.on_event: Callable[[Streamed], None] = lambda _: None

    def run(self) -> None:
        """Until interrupted. Raises ApiUnreachable where the API never answered, ApiRefused where it will not."""
        while True:
            try:
                with self._api.stream(PATH, self._query, self._last_id) as messages:
                    for message in messages:
                        self._take(message)
            except ApiUnreachable as e:
                if self._last_id is None:
                    raise
                self._pause(str(e))
            except ApiRefused as e:
                if e.status == 410:
                    self._say("Away for too long: what was emitted meanwhile is lost here. Going on from now.")
                    self._last_id = None
                elif e.status in _COME_AGAIN and self._last_id is not None:
                    self._pause(str(e), e.retry_after_s)
                else:
                    raise

    def _take(self, message: Message) -> None:
        if self._last_id is None:
            self._say("Ready.")
        elif self._broken:
            self._say("Connected again; nothing was lost.")
        self._broken = 0
        if message.data:
            event = msgspec.json.decode(message.data, type=Streamed)
            self.on_event(event)
            outcome = f"  {self._forwarder.forward(event)}" if self._forwarder else ""
            self._say(f"{datetime.now(UTC):%H:%M:%S}  {event.event_type}  {event.event_id}{outcome}")
        self._last_id = message.id

    def _pause(self, reason: str, least_s: float | None = None) -> None:
        if not self._broken:
            self._say(f"Disconnected ({reason}). Trying again; events are kept for an hour.")
        time.sleep(max(_PAUSES_S[min(self._broken, len(_PAUSES_S) - 1)], least_s or 0))
        self._broken += 1
