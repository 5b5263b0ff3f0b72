"""A customer's receiver in the standard library alone: verifies both signatures, answers, and tells what came."""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Final

from typing_extensions import override

PATH: Final = "/hook"
_TOLERANCE_S: Final = 300
_MAX_BODY_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as it came: the event's id, type and data, which attempt it was, and whether its signatures hold."""

    event_id: str
    event_type: str
    attempt: str
    data: str
    stripe_format: bool
    standard_webhooks: bool


def stripe_format_holds(secret: str, header: str, body: bytes, now_s: float) -> bool:
    """Whether any v1 of `t=…,v1=…` is the HMAC-SHA256 over `<t>.<body>`, and t is no more than 5 minutes off."""
    fields = [field.partition("=") for field in header.split(",")]
    times = [value for name, _, value in fields if name == "t"]
    if len(times) != 1 or not times[0].isdecimal() or abs(now_s - int(times[0])) > _TOLERANCE_S:
        return False
    expected = hmac.digest(secret.encode(), times[0].encode() + b"." + body, "sha256").hex().encode()
    return any(hmac.compare_digest(value.encode(), expected) for name, _, value in fields if name == "v1")


def standard_webhooks_holds(secret: str, headers: Mapping[str, str], body: bytes, now_s: float) -> bool:
    """Whether any `v1,…` of webhook-signature is right by Standard Webhooks 1.0."""
    event_id, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not stamp.isdecimal() or abs(now_s - int(stamp)) > _TOLERANCE_S:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = b"v1," + base64.b64encode(hmac.digest(key, f"{event_id}.{stamp}.".encode() + body, "sha256"))
    given = headers.get("webhook-signature", "").split(" ")
    return any(hmac.compare_digest(signature.encode(), expected) for signature in given)


class Receiver:
    """An HTTP server on 127.0.0.1 in threads of its own. What arrives is put into `arrivals`."""

    def __init__(self, port: int) -> None:
        """Listens on `port`, or where that is taken, or 0, on a free one."""
        self.arrivals: SimpleQueue[Arrival] = SimpleQueue()
        self.secret = ""  # known only once the subscription is; requests before that are turned away
        handler = type("Handler", (_Handler,), {"receiver": self})
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError:
            self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """The endpoint to be registered."""
        return f"http://127.0.0.1:{self.port}{PATH}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    receiver: Receiver
    timeout = 30  # of a silent connection, in seconds
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != PATH or not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
            self._answer(404)
            self.close_connection = True  # the body is still to come
            return
        body = self.rfile.read(int(length))
        secret, now_s = self.receiver.secret, time.time()
        headers = {name.lower(): value for name, value in self.headers.items()}
        stripe_format = bool(secret) and stripe_format_holds(secret, headers.get("dealix-signature", ""), body, now_s)
        standard = bool(secret) and standard_webhooks_holds(secret, headers, body, now_s)
        if not (stripe_format and standard):
            self._answer(400)
        else:
            self._answer(200)
        self.receiver.arrivals.put(
            Arrival(
                event_id=headers.get("dealix-event-id", "?"),
                event_type=headers.get("dealix-event-type", "?"),
                attempt=headers.get("dealix-delivery-attempt", "?"),
                data=_data(body) if stripe_format else "",
                stripe_format=stripe_format,
                standard_webhooks=standard,
            )
        )

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the arrivals are the log."""


def _data(body: bytes) -> str:
    """The event's data on one line. Only for a body whose signature holds."""
    return json.dumps(json.loads(body)["data"], ensure_ascii=True)
