"""The log: one structlog set-up for our own lines and for those of the libraries, and the last net for secrets.

Lines go to standard error, where systemd's journal and a terminal both look; standard output belongs to what a command
prints. What a line says: `noun.past_tense` and keys; never a secret, a payload, or an endpoint's path and query. That
is the callers' duty; `_redacted` and `scrub` below only catch what slipped through.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Mapping
from typing import Final, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from config.settings import Log

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_SECRET_KEY: Final = re.compile(r"(?:.*[_-])?(?:(?:secret|authorization|token|password)s?|key)", re.IGNORECASE)
_SECRET_TEXT: Final = re.compile(
    r"(?P<prefix>whsec_|\bdlx_)[A-Za-z0-9+/=_-]+"
    r"|(?P<url>\b[a-z][a-z0-9+.-]{0,30}://[^\s:/@\"']{0,100}:)\S*(?=@)"
    r"|(?P<password>\bpassword\s*=\s*)(?:'[^']*'|[^\s&\"']+)"
    r"|(?P<bearer>\bBearer\s+)[A-Za-z0-9._~+/=-]+",
    re.IGNORECASE,
)
_SECRET_HINTS: Final = ("whsec_", "dlx_", "://", "password", "bearer")
"""One of them is in every match of `_SECRET_TEXT`: five searches cost 2 µs a line, the expression 40."""
_HIDDEN: Final = "***"


class _Sink:
    """Writes lines. A full disk or a closed pipe loses the line, not the daemon; so does a missing stream."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        if self._stream is None:  # started with descriptor 2 closed
            return
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            _ = self._stream.write(scrub(line) + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = msg


class _FromLibraries(logging.Handler):
    """Hypercorn's, Quart's and other libraries' records, as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError) as e:  # a library's format string does not fit its arguments
            text = f"{record.msg!r}: {e}"
        level = min(
            max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL
        )  # structlog knows no levels between
        get(record.name).log(level, "library.said", text=text, exc_info=record.exc_info)


def configure(settings: Log, stream: TextIO | None = None) -> None:
    """Send everything to `stream` (standard error unless told) from now on. May be called again: a reload does."""
    stream = stream or sys.stderr
    terminal = stream is not None and stream.isatty()
    console = settings.format == "console" or (settings.format == "auto" and terminal)
    level = _LEVELS[settings.level]
    render: list[Processor] = (
        [
            structlog.dev.ConsoleRenderer(
                colors=terminal,
                # The default would print the local variables of each frame where `rich` is installed.
                exception_formatter=structlog.dev.plain_traceback,
                repr_native_str=True,  # keeps terminal escapes of strangers' texts from being obeyed
                timestamp_key="time",
            )
        ]
        if console
        else [structlog.processors.format_exc_info, _in_order, _as_json]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _redacted,
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Sink(stream),
        # Not cached: a reload may change the level, and the look-up costs 1–2 µs.
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_FromLibraries()]
    # Never below warning: on info and debug libraries quote what they handle.
    root.setLevel(max(level, logging.WARNING))
    # In an outage psycopg warns of each rollback that it cannot make; what the outage means is said by who meets it.
    logging.getLogger("psycopg").setLevel(logging.ERROR)


def get(name: str) -> FilteringBoundLogger:
    """A logger whose lines carry `part=name`. Cheap, may stand at the top of a module, follows every `configure`."""
    return cast("FilteringBoundLogger", structlog.get_logger(part=name))


def scrub(text: str) -> str:
    """`text` without what looks like a webhook secret, an API key, a password in a URL, or a bearer token."""
    lower = text.lower()
    if not any(hint in lower for hint in _SECRET_HINTS):
        return text
    return _SECRET_TEXT.sub(lambda m: "".join(part or "" for part in m.groups()) + _HIDDEN, text)


def _redacted(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Hides the values of keys that are named as secrets are."""
    return cast("EventDict", _without_secrets(event))


def _without_secrets(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    pairs = cast("Mapping[object, object]", value).items()
    return {k: _HIDDEN if inner and _SECRET_KEY.fullmatch(str(k)) else _without_secrets(inner) for k, inner in pairs}


def _in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Time, level, part and event first: what eyes look for in a line."""
    first = {key: event.pop(key) for key in ("time", "level", "part", "event") if key in event}
    return first | cast("dict[str, object]", event)


def _as_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """ASCII alone, so that no text of a stranger breaks a line, moves a cursor, or fails to encode."""
    return json.dumps(event, default=repr)
