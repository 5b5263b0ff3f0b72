"""A route as a value: who may call it, what it takes and answers; and the Quart view that it becomes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

import msgspec
from quart import Response, g, request

from api.auth import Caller, authenticate
from api.bodies import convert, decode_query, read_body
from api.services import Services
from daemon.policy.trace_context import parse

BASE: Final = "/api/v1/ecosystem"
JSON: Final = "application/json"

Method = Literal["GET", "POST", "PATCH", "DELETE"]
Who = Literal["anyone", "key", "ops"]


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A route without parameters refuses those that are given: they would be a mistake."""


class NoBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A route without a body does not read it."""


Values = Mapping[str, object]

Q = TypeVar("Q", bound=msgspec.Struct)
B = TypeVar("B", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Call(Generic[Q, B]):
    """One request that was let in and decoded. `path` holds the parameters of the route's path.

    `traceparent` is a valid one, of a route that takes it.
    """

    path: Mapping[str, str]
    query: Q
    body: B
    known_caller: Caller | None
    traceparent: str | None = None

    @property
    def caller(self) -> Caller:
        """Who asks. Only for routes that need a key."""
        if self.known_caller is None:
            raise RuntimeError("this route is open to anyone")
        return self.known_caller


@dataclass(frozen=True, slots=True)
class Answer:
    """A status of success that the route names, and its body."""

    status: int
    body: msgspec.Struct


@dataclass(frozen=True, slots=True)
class Streamed(Answer):
    """An answer that goes on: `chunks` are sent as they come. `body` tells what they are made of, and is not sent."""

    chunks: AsyncGenerator[bytes]


@dataclass(frozen=True, slots=True)
class Route:
    """See `route`, which makes it.

    `respond` decodes the present request and runs the handler; `ask` runs it with values of a path, a query and a body.
    """

    method: Method
    path: str
    name: str
    doc: str
    who: Who
    query: type[msgspec.Struct]
    body: type[msgspec.Struct]
    body_optional: bool
    takes_traceparent: bool
    answers: Mapping[int, type[msgspec.Struct]]
    media_type: str
    problems: tuple[int, ...]
    respond: Callable[[Mapping[str, str], Caller | None], Awaitable[Answer]]
    ask: Callable[[Mapping[str, str], Values, Values, Caller | None], Awaitable[Answer]]

    @property
    def takes_body(self) -> bool:
        """Whether the body is read at all."""
        return self.body is not NoBody


def route(  # noqa: PLR0913 a table's columns, all named at the call
    method: Method,
    path: str,
    handler: Callable[[Call[Q, B]], Awaitable[Answer]],
    *,
    query: type[Q] = NoQuery,
    body: type[B] = NoBody,
    body_optional: bool = False,
    takes_traceparent: bool = False,
    answers: Mapping[int, type[msgspec.Struct]],
    media_type: str = JSON,
    problems: tuple[int, ...] = (),
    who: Who = "key",
    base: str = BASE,
) -> Route:
    """A route. `path` is Werkzeug's, below `base`; `answers` has each status of success with the struct of its body.

    `media_type` is that of its successes: where it is not JSON, the handler answers `Streamed`.
    `problems` are the statuses that it can end with beyond those that follow from the rest: see `every_problem`.
    `body_optional`: no body at all counts as `{}`. `takes_traceparent`: that header is read. The handler's docstring
    describes the route in the API's document.
    """

    async def respond(parameters: Mapping[str, str], caller: Caller | None) -> Answer:
        asked = decode_query(request.args, query)
        given = msgspec.convert({}, body) if body is NoBody else await read_body(request, body, optional=body_optional)
        return await handler(Call(parameters, asked, given, caller, _traceparent() if takes_traceparent else None))

    async def ask(parameters: Mapping[str, str], asked: Values, given: Values, caller: Caller | None) -> Answer:
        return await handler(Call(parameters, convert(asked, query), convert(given, body), caller))

    return Route(
        method=method,
        path=base + path,
        name=handler.__name__,
        doc=handler.__doc__ or "",
        who=who,
        query=query,
        body=body,
        body_optional=body_optional,
        takes_traceparent=takes_traceparent,
        answers=answers,
        media_type=media_type,
        problems=problems,
        respond=respond,
        ask=ask,
    )


def _traceparent() -> str | None:
    """The present request's; a malformed one, or more than one, counts for none (W3C Trace Context, section 3.2)."""
    given = request.headers.getlist("traceparent")
    context = parse(given[0]) if len(given) == 1 else None
    return None if context is None else context.header


def every_problem(chosen: Route) -> list[int]:
    """Every problem status that a caller of the route may meet, ascending; 500 apart, which is a bug."""
    found = set(chosen.problems)
    if chosen.query.__struct_config__.forbid_unknown_fields:
        found.add(422)
    if chosen.who != "anyone":
        found |= {401, 429, 503}
    if chosen.who == "ops" or "customer_id" in (*chosen.query.__struct_fields__, *chosen.body.__struct_fields__):
        found.add(403)
    if chosen.takes_body:
        found |= {400, 408, 413, 415, 422}
    return sorted(found)


def view_of(chosen: Route, services: Services) -> Callable[..., Awaitable[Response]]:
    """The Quart view of a route. The key comes first, so that strangers cost one look-up and learn nothing."""

    async def view(**path: str) -> Response:
        caller = None
        if chosen.who != "anyone":
            caller = await authenticate(services, request)
            g.key_id = caller.key_id  # for the access log
            if chosen.who == "ops":
                caller.require_ops()
        answer = await chosen.respond(path, caller)
        if isinstance(answer, Streamed):
            response = Response(answer.chunks, answer.status, content_type=chosen.media_type)
            response.timeout = None  # it ends by itself
            return response
        return Response(msgspec.json.encode(answer.body), answer.status, content_type=JSON)

    view.__name__ = chosen.name
    view.__doc__ = chosen.doc
    return view
