"""The API's operations as the pages call them: by name, in this process, with the session's caller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, TypeVar

import msgspec

from api.auth import Caller
from api.operation import Route, Values

_NOTHING: Final[Values] = MappingProxyType({})
_NO_PATH: Final[Mapping[str, str]] = MappingProxyType({})

A = TypeVar("A", bound=msgspec.Struct)


class Operations:
    """All routes of the API, by their names. Whatever they refuse is raised as the Problem that they answer."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = {one.name: one for one in routes}

    async def ask(  # noqa: PLR0913 a request's parts, all but the first three named at the call
        self,
        caller: Caller,
        name: str,
        answer: type[A],
        *,
        path: Mapping[str, str] = _NO_PATH,
        query: Values = _NOTHING,
        body: Values = _NOTHING,
    ) -> A:
        """What the operation answers, which is an `answer`. Raises Problem, DatabaseUnavailable."""
        route = self._routes[name]
        if route.who == "ops":
            caller.require_ops()
        given = (await route.ask(path, query, body, caller)).body
        if not isinstance(given, answer):
            raise TypeError(f"{name} answers {type(given).__name__}, not {answer.__name__}")
        return given
