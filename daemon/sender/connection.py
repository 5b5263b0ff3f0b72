"""One connection: bytes out and in, plain or TLS, and one exchange at a time on it.

TLS runs over memory buffers (`SSLContext.wrap_bio`) rather than through `trio.SSLStream`: a third cheaper, and the
bytes of a request can be handed to the kernel without waiting, which is what the gate is about.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol

import trio

from daemon.sender.failure import Failure
from daemon.sender.response import ResponseReader

_CHUNK_BYTES: Final = 16 * 1024
_MAX_RAW_BYTES: Final = 128 * 1024
"""Per exchange or handshake, as they come from the socket. The reader's caps are about content; this one is about what
can be sent for ever without any: TLS records, chunk extensions, trailers."""


class Gate(Protocol):
    """What has to be passed to sign and write. A trio.CapacityLimiter is one, and so is `daemon.actors.lanes.Gate`."""

    async def acquire(self) -> None:
        """Wait for the turn."""
        ...

    def release(self) -> None:
        """The bytes are with the kernel."""
        ...


class _TooMuchError(Exception):
    """The peer sent `_MAX_RAW_BYTES` and we are still not there."""


class Connection:
    """Owns a connected, non-blocking socket and, for https, the TLS session on it."""

    __slots__ = (
        "_has_plaintext",
        "_incoming",
        "_outgoing",
        "_raw_bytes",
        "_sock",
        "_tls",
        "_unsent",
        "died_unanswered",
        "has_expired",
        "idle_at",
    )

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._tls: ssl.SSLObject | None = None
        self._incoming = self._outgoing = _NO_BIO
        self._has_plaintext = False
        self._raw_bytes = 0
        self._unsent = memoryview(b"")
        self.idle_at = 0.0
        """When it was laid aside (`trio.current_time()`); meaningless while in use."""
        self.died_unanswered = False
        """Set by `exchange`: the connection broke before the first byte of an answer."""
        self.has_expired = False
        """Set by `expire`: the exchange going on shall end, and is to be closed after it."""

    async def start_tls(self, context: ssl.SSLContext, host: str, gate: trio.CapacityLimiter) -> Failure | None:
        """Handshake, verified for `host`. `gate` bounds the handshakes that compute at the same time."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._raw_bytes = 0
        try:
            while True:
                async with gate:
                    done = self._handshake_step(self._tls)
                await self._send_rest()
                if done:
                    return None
                if not await self._receive_raw():
                    return Failure("tls", "The endpoint closed the connection during the TLS handshake.")
        except ssl.SSLCertVerificationError as e:
            return Failure("tls", f"The endpoint's certificate was refused: {e.verify_message.rstrip('.')}.")
        except ssl.SSLError as e:
            return Failure("tls", f"The TLS handshake failed: {_reason(e)}.")
        except OSError:
            return Failure("tls", "The connection was reset during the TLS handshake.")
        except _TooMuchError:
            return Failure("tls", "The endpoint sent too much during the TLS handshake.")

    def _handshake_step(self, tls: ssl.SSLObject) -> bool:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._queue(self._outgoing.read())
            self._flush()  # also the alert that tells the peer why
        return True

    async def exchange(self, request: Callable[[], bytes], gate: Gate, reader: ResponseReader) -> Failure | None:
        """Send one request and read its answer into `reader`; None when `reader` has a complete head, or it expired.

        `request` is called and the bytes go to the kernel under `gate`; what the kernel does not take at once, and
        the wait for the answer, stand outside it. Ends early by cancellation or `expire`: the deadline is the caller's.
        """
        self._raw_bytes = 0
        await gate.acquire()
        try:
            if self.has_expired:
                return None
            self._send_now(request())
        finally:
            gate.release()
        if not self._unsent:
            failure = await self._read(reader)
        else:
            # A peer may answer (413) and close without reading all: listen while sending.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_rest_quietly)
                failure = await self._read(reader)
                nursery.cancel_scope.cancel()
        if reader.head_complete or self.has_expired:
            return None
        self.died_unanswered = not reader.received_bytes and failure.kind in {"reset", "tls"}
        return failure

    def may_be_kept(self, reader: ResponseReader) -> bool:
        """Whether the next request may use this connection after the answer in `reader`."""
        return reader.reusable and not (self._unsent or self.has_expired or self._has_leftover())

    def is_alive(self) -> bool:
        """Whether an idle connection is still usable: not closed, and nothing came that nobody asked for."""
        try:
            data = self._sock.recv(_CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        if not data or self._tls is None:
            return False
        self._incoming.write(data)  # TLS 1.3 session tickets may come late; content may not
        self._has_plaintext = True
        return not self._has_leftover()

    def expire(self) -> None:
        """End the exchange that is going on, from another task."""
        self.has_expired = True
        trio.lowlevel.notify_closing(self._sock)  # whoever waits for the socket is woken by ClosedResourceError

    def close(self) -> None:
        """Close at once. No TLS close_notify: it could wait for the peer, and HTTP has said where the answer ended."""
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()

    async def _read(self, reader: ResponseReader) -> Failure:
        """Feed `reader` until it is finished; the failure holds only if its head is not complete then."""
        receive = self._receive_raw if self._tls is None else self._receive_decrypted
        while not reader.finished:
            try:
                data = await receive()
            except ssl.SSLError as e:
                return Failure("tls", f"The TLS connection broke before an answer came: {_reason(e)}.")
            except (OSError, trio.ClosedResourceError):
                return Failure("reset", "The connection was reset before an answer came.")
            except _TooMuchError:
                return Failure("protocol", "The endpoint sent too much without an answer.")
            if data:
                reader.feed(data)
            else:
                reader.end()
        if reader.fault is not None:
            return Failure("protocol", f"The answer is not valid HTTP: {reader.fault}.")
        return Failure("reset", "The connection was closed before an answer came.")

    async def _receive_decrypted(self) -> bytes:
        """The next bytes of content, b"" when the peer has closed. Raises OSError (SSLError included)."""
        while True:
            if self._has_plaintext and self._tls is not None:
                try:
                    return self._tls.read(_CHUNK_BYTES)
                except ssl.SSLWantReadError:
                    self._has_plaintext = False
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return b""
            if not await self._receive_raw():
                return b""

    async def _receive_raw(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data = self._sock.recv(_CHUNK_BYTES)
                break
            except (BlockingIOError, InterruptedError):
                continue
        self._raw_bytes += len(data)
        if self._raw_bytes > _MAX_RAW_BYTES:
            raise _TooMuchError
        if self._tls is not None and data:
            self._incoming.write(data)
            self._has_plaintext = True
        return data

    def _has_leftover(self) -> bool:
        """Whether content, or an end, lies decrypted behind the answer."""
        if self._tls is None or not self._has_plaintext:
            return False
        try:
            self._tls.read(1)
        except ssl.SSLWantReadError:
            self._has_plaintext = False
            return False
        except ssl.SSLError:
            return True
        return True

    def _send_now(self, data: bytes) -> None:
        """Give the kernel what it takes of `data` without waiting; the rest stays unsent."""
        if self._tls is None:
            self._queue(data)
        else:
            self._tls.write(data)  # whole: a memory buffer takes everything
            self._queue(self._outgoing.read())
        self._flush()

    def _queue(self, data: bytes) -> None:
        self._unsent = memoryview(bytes(self._unsent) + data if self._unsent else data)

    def _flush(self) -> None:
        if not self._unsent:
            return
        try:
            sent = self._sock.send(self._unsent)
        except OSError:
            return  # full, or closed by a peer that may have answered before: the read will tell
        self._unsent = self._unsent[sent:]

    async def _send_rest(self) -> None:
        while self._unsent:
            await trio.lowlevel.wait_writable(self._sock)
            try:
                sent = self._sock.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                continue
            self._unsent = self._unsent[sent:]

    async def _send_rest_quietly(self) -> None:
        with contextlib.suppress(OSError, trio.ClosedResourceError):  # as in _flush; expired
            await self._send_rest()


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's name for what went wrong, in words: `UNSUPPORTED_PROTOCOL`, or the alert that the peer sent."""
    return (error.reason or "no reason given").replace("_", " ").lower()


_NO_BIO: Final = ssl.MemoryBIO()
"""Stands in the places of a plain connection's buffers; never written to."""
