"""Payloads against the JSON Schemas of their types, for those types that enforce theirs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import trio

from api.errors import FieldError, Problem
from daemon.store import event_types
from daemon.store.connection import Connection

if TYPE_CHECKING:  # what is in it is loaded with the first schema that is enforced: see there
    from api.json_schema import Schema

FRESH_S: Final = 1.0
"""How long what was read of the catalogue is used: so soon a change takes effect on every daemon."""
AT_ONCE_BYTES: Final = 4096
"""Payloads beyond this are judged in a thread: 256 KiB of them take a second, which nobody else shall wait for."""


class Enforcement:
    """The schemas that emits over HTTP have to fit, read again each second. One for the API."""

    def __init__(self) -> None:
        self._read_at = float("-inf")
        self._texts: dict[str, str] = {}
        self._schemas: dict[str, Schema] = {}

    async def check(self, conn: Connection, payloads: Iterable[tuple[str, str, str]]) -> None:
        """Of (event type, payload, field): raises Problem 422 for the first payload that does not fit its type."""
        await self._refresh(conn)
        if not self._schemas:
            return
        concerned = [(self._schemas[kind], text, field) for kind, text, field in payloads if kind in self._schemas]
        if sum(len(text) for _, text, _ in concerned) <= AT_ONCE_BYTES:
            found = _first_fault(concerned)
        else:
            found = await trio.to_thread.run_sync(_first_fault, concerned)
        if found is not None:
            raise Problem(422, "payload_invalid", f"{found.field}: {found.message}.", errors=[found])

    async def _refresh(self, conn: Connection) -> None:
        now = trio.current_time()
        if now - self._read_at < FRESH_S:
            return
        texts = await event_types.enforced(conn)
        self._schemas = {kind: self._known(kind, text) for kind, text in texts.items()}
        self._texts = texts
        self._read_at = now

    def _known(self, kind: str, text: str) -> Schema:
        if self._texts.get(kind) == text:
            return self._schemas[kind]
        from api.json_schema import Schema  # noqa: PLC0415 see there

        return Schema(text)


def _first_fault(concerned: Iterable[tuple[Schema, str, str]]) -> FieldError | None:
    for schema, text, field in concerned:
        fault = schema.fault(text)
        if fault is not None:
            joined = f"{field}{fault.field}" if fault.field.startswith("[") else f"{field}.{fault.field}".rstrip(".")
            return FieldError(joined, fault.message)
    return None
