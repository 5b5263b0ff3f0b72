"""One answer, read strictly and within caps: what a hostile receiver sends costs a bounded amount and poisons nothing.

The parser is llhttp in its strict mode. It refuses what proxies and servers have been seen to disagree about (both
lengths, folded headers, bare line feeds, NUL); what it leaves to its user is done here: how large, how many, which
version, and that nothing but empty lines (which llhttp passes over) follows the answer.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

import httptools

from daemon.model import Outcome

MAX_HEAD_BYTES: Final = 32 * 1024
"""Interim answers included. Looked at once per read, so that up to one read more may be taken."""
MAX_HEADERS: Final = 256
MAX_INTERIM: Final = 8
"""1xx answers before the real one; one or two are usual."""
MAX_BODY_BYTES: Final = 4 * 1024
"""What the log keeps. A longer body is not read on: the connection is closed, which costs less than the reading."""

_KEPT_HEADER_CHARACTERS: Final = 4 * 1024
_KEPT_HEADERS: Final = 64
_KEPT_VALUE_CHARACTERS: Final = 1024
_NOTED: Final = {b"content-length": "framed", b"transfer-encoding": "framed", b"retry-after": "retry_after"}
_Utf8Decoder: Final = codecs.getincrementaldecoder("utf-8")
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e\xa1-\xac\xae-\xff]")


class ResponseReader:
    """Collects one answer from the bytes fed to it.

    `head_complete`: a complete final header block came; from then on the answer counts, whatever befalls the body.
    `fault`: why it is no valid answer; set only before the head is complete. `finished`: nothing more is wanted.
    """

    __slots__ = (
        "_body",
        "_extra",
        "_framed",
        "_headers",
        "_interim",
        "_keep_alive",
        "_parser",
        "_retry_after",
        "_whole",
        "fault",
        "finished",
        "head_complete",
        "received_bytes",
        "status",
    )

    def __init__(self) -> None:
        self._body = bytearray()
        self._extra = False
        self._framed = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._interim = 0
        self._keep_alive = False
        self._whole = False
        self.fault: str | None = None
        self.finished = False
        self.head_complete = False
        self.received_bytes = 0
        self.status = 0
        self._retry_after: bytes | None = None
        self._parser = httptools.HttpResponseParser(self)

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request, as far as the answer tells."""
        return self._whole and self._keep_alive and not self._extra

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection. Call it only while not `finished`."""
        if not self.received_bytes and data[:1] != b"H":  # llhttp also takes RTSP and ICE, and empty lines before
            self._refuse("it does not begin with HTTP/")
            return
        self.received_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # on_headers_complete has refused it
        except httptools.HttpParserError as e:
            if self._whole:
                self._extra = True
            elif self.head_complete:
                self.finished = True
            else:
                self._refuse(str(e))
        if self.finished:
            return
        if not self.head_complete and self.received_bytes > MAX_HEAD_BYTES:
            self._refuse("its headers are too large")
        elif len(self._body) > MAX_BODY_BYTES:
            self.finished = True

    def end(self) -> None:
        """The peer closed. Without a length this is how a body ends (RFC 9112 section 6.3)."""
        self._whole = self._whole or (self.head_complete and not self._framed)
        self._keep_alive = False
        self.finished = True

    def release(self) -> None:
        """Part from the parser, which refers back: no work for the garbage collector. `feed` is over with that."""
        del self._parser

    def outcome(self, duration_ms: int) -> Outcome:
        """The answer as it is stored and shown. Only when the head is complete."""
        body, truncated = bytes(self._body), not self._whole
        if len(body) > MAX_BODY_BYTES:
            body, truncated = body[:MAX_BODY_BYTES], True
        # An incremental decoder drops a character that the cut went through instead of marking it as damage.
        text = _Utf8Decoder("replace").decode(body) if truncated else body.decode("utf-8", "replace")
        return Outcome(
            self.status,
            None,
            None,
            duration_ms,
            _kept(self._headers),
            text.replace("\0", "\ufffd"),
            truncated,
            None if self._retry_after is None else _printable(self._retry_after),
        )

    # Nothing is raised in what the parser calls: it would hide the exception in another's context.

    def on_message_begin(self) -> None:
        """For the parser: a status line begins."""
        if self._whole:
            self._extra = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """For the parser: one header, or one trailer."""
        if self.head_complete:
            return  # trailers, or a second answer that nobody asked for
        if len(self._headers) >= MAX_HEADERS:
            self._refuse("it has too many headers")
            return
        self._headers.append((name, value))
        noted = _NOTED.get(name.lower())
        if noted == "framed":
            self._framed = True
        elif noted == "retry_after" and self._retry_after is None:
            self._retry_after = value

    def on_headers_complete(self) -> None:
        """For the parser: the empty line after the headers."""
        if self.head_complete or self.finished:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            return
        if self._parser.get_http_version() not in {"1.1", "1.0"}:
            self._refuse("it is not HTTP/1.1")
        elif status == 101:
            self._refuse("it switches to another protocol (101)")
        elif not 200 <= status <= 599:
            self._refuse(f"its status {status} is not a final one")
        else:
            self.status = status
            self.head_complete = True

    def on_body(self, data: bytes) -> None:
        """For the parser: a piece of the body."""
        if not self._whole:
            self._body += data  # at most one read more than is kept: `feed` then ends it

    def on_message_complete(self) -> None:
        """For the parser: the end of one message, also of each interim one."""
        if self._whole or self.finished:
            return
        if self.head_complete:
            # Only in here does the parser know; afterwards it always says no.
            self._keep_alive = self._parser.should_keep_alive()
            self._whole = self.finished = True
            return
        self._interim += 1
        self._headers.clear()
        self._framed = False
        self._retry_after = None
        if self._interim > MAX_INTERIM:
            self._refuse("it has too many interim (1xx) answers")

    def _refuse(self, reason: str) -> None:
        if not self.head_complete and self.fault is None:
            self.fault = reason
        self.finished = True


def _kept(headers: list[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    kept: list[tuple[str, str]] = []
    room = _KEPT_HEADER_CHARACTERS
    for name, value in headers[:_KEPT_HEADERS]:
        room -= len(name) + min(len(value), _KEPT_VALUE_CHARACTERS)
        if room < 0:
            break
        kept.append((name.decode("latin-1"), _printable(value)))  # a name is a token, or the parser refuses it
    return tuple(kept)


def _printable(raw: bytes) -> str:
    text = raw[:_KEPT_VALUE_CHARACTERS].decode("latin-1")
    return text if text.isprintable() else _UNPRINTABLE.sub("?", text)
