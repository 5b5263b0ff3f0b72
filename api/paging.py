"""Cursors: where a list goes on. Opaque, good only for the route and filters that they came from."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from api.errors import Problem, invalid

MAX_CHARACTERS: Final = 200
_TEXT: Final = re.compile(r"[A-Za-z0-9_-]+")
_CHECK_BYTES: Final = 12

CursorText = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=MAX_CHARACTERS,
        pattern=r"^[A-Za-z0-9_-]+\Z",
        description="`next_cursor` of the page before, with the same filters.",
    ),
]


class List(msgspec.Struct, frozen=True):
    """What a list is about: its route and the filters that choose its rows, the page's size not among them."""

    route: str
    filters: Sequence[str | bool | None]

    def cursor(self, position: str) -> str:
        """The text that leads to the rows after `position`."""
        return base64.urlsafe_b64encode(self._check(position.encode()) + position.encode()).decode().rstrip("=")

    def position(self, cursor: str, shape: re.Pattern[str]) -> str:
        """The position that a cursor of this very list stands for. Raises Problem 422 for any other text.

        The check is no signature: every statement is bound to the customer anyway. It keeps a cursor from being used
        where it would silently skip rows. `shape` is matched all the same, before the position gets near a statement.
        """
        try:
            if not _TEXT.fullmatch(cursor):
                raise _damaged()
            content = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            position = content[_CHECK_BYTES:].decode("ascii")
        except ValueError as e:
            raise _damaged() from e
        # Compared as a whole: base64 has several texts for the same bytes.
        if self.cursor(position) != cursor or not shape.fullmatch(position):
            raise _damaged()
        return position

    def _check(self, position: bytes) -> bytes:
        content = msgspec.json.encode([self.route, self.filters, position])
        return hashlib.sha256(content).digest()[:_CHECK_BYTES]


def _damaged() -> Problem:
    return invalid("cursor", "is not a cursor of this list with these filters")
