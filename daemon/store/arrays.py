"""Arrays as parameters, in Postgres' own text form."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


def array(values: Iterable[int] | Iterable[str]) -> str:
    """Numbers, or identifiers of letters, digits, `_`, `.`, `:` and `-`, which JSON and Postgres quote alike, as '{…}'.

    psycopg's own way takes 1.6 µs an element, 210 µs for a look into the outbox; this 1 µs for 64 of them.
    """
    return f"{{{msgspec.json.encode(list(values)).decode()[1:-1]}}}"
