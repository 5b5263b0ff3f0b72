"""The bytes of one POST: head and body in one piece, for one system call and one TLS record where they fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from daemon.errors import RequestUnsafe
from daemon.policy.endpoint_url import Target

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""RFC 9110 section 5.6.2, token."""
_TARGET: Final = re.compile(r"/[\x21-\x7e]*")
_HOST: Final = re.compile(r"[0-9a-z_.:-]+")
_OWN: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect"}
)
"""What frames the message or steers the connection is written here and nowhere else."""


def build(target: Target, headers: Sequence[tuple[str, str]], body: bytes) -> bytes:
    """A complete HTTP/1.1 POST of `body` to `target` with `headers`, plus Host, Accept-Encoding and Content-Length.

    Nothing here escapes anything, so everything is checked: raises RequestUnsafe for a header name or value, or a
    target, that could end its line or is not what it claims to be. Values may be printable ASCII only.
    """
    values = [value for _, value in headers]
    joined = "".join(values)  # the rule is about characters, so one look is enough for all
    if not (joined.isascii() and joined.isprintable()):
        raise RequestUnsafe("a header value has characters that a header cannot carry")
    head = _form(target, tuple([name for name, _ in headers])) % (*values, len(body))
    return head.encode("ascii") + body


# Names and targets repeat, values do not: what passed once is remembered, what is refused raises and is not.


@lru_cache(maxsize=4096)
def _form(target: Target, names: tuple[str, ...]) -> str:
    """The head with a `%s` for each value and for the length."""
    if not _TARGET.fullmatch(target.path_and_query) or not _HOST.fullmatch(target.host):
        raise RequestUnsafe("the target has characters that a request line cannot carry")
    start = f"POST {target.path_and_query} HTTP/1.1\r\nHost: {target.authority}\r\n".replace("%", "%%")
    lines = "".join([f"{_checked(name)}: %s\r\n" for name in names])
    return f"{start}{lines}Accept-Encoding: identity\r\nContent-Length: %s\r\n\r\n"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise RequestUnsafe("a header name is not a token")
    if name.lower() in _OWN:
        raise RequestUnsafe("a header would change the message's framing")
    return name.replace("%", "%%")
