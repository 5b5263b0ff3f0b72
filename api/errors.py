"""What goes wrong, as RFC 9457 problem documents. Each has a `code` that stays the same for programs to look at."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import msgspec
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from daemon.errors import DatabaseUnavailable
from daemon.log import get

log = get("api")

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 2
"""After a 503. The pool tries to connect once a second while the database is away."""

TITLES: Final = {
    400: "Bad request",
    401: "No valid key",
    403: "Not allowed with this key",
    404: "Not found",
    405: "Method not allowed",
    408: "Request took too long",
    409: "Conflict",
    410: "Gone",
    413: "Too large",
    415: "Unsupported media type",
    422: "Invalid value",
    429: "Too many requests",
    431: "Header too large",
    500: "Internal error",
    503: "Temporarily unavailable",
}
_CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    431: "header_too_large",
}
_DETAILS: Final = {
    400: "The request could not be read.",
    404: "There is nothing at this address.",
    405: "This address does not know the method; the Allow header names those it knows.",
    408: "The request did not come in time.",
    413: "The body is larger than 1 MiB.",
    431: "The request's line and header fields are larger than 16 KiB.",
}


class FieldError(msgspec.Struct, frozen=True):
    """One value that was refused. `field` is a path such as `events[3].payload`, empty for the body as a whole."""

    field: str
    message: str


class ProblemDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """An RFC 9457 problem. Programs should look at `code`; the texts are for people and may change."""

    type: str
    title: str
    status: int
    detail: str
    code: Annotated[str, msgspec.Meta(pattern=r"^[a-z_]+\Z")]
    errors: Annotated[list[FieldError], msgspec.Meta(description="With 422: the values that were refused.")] = []


class Problem(Exception):
    """Ends the request with this answer. `detail` is one sentence fit for the caller: nothing internal in it."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """The answer to send."""
        return Response(self.body(), self.status, headers=self.headers, content_type=MEDIA_TYPE)

    def body(self) -> bytes:
        """The answer's body."""
        return msgspec.json.encode(
            ProblemDocument(
                type=f"urn:dealix:problem:{self.code}",
                title=TITLES.get(self.status, "Error"),
                status=self.status,
                detail=self.detail,
                code=self.code,
                errors=self.errors,
            )
        )


def invalid(field: str, message: str) -> Problem:
    """422 for one value of the query or body."""
    return Problem(422, "invalid", f"{field}: {message}" if field else message, errors=[FieldError(field, message)])


def not_found(what: str) -> Problem:
    """404 for an object that is not there, or is another customer's: the two look the same."""
    return Problem(404, "not_found", f"There is no such {what}.")


def unavailable(code: str, detail: str) -> Problem:
    """503, with word of when to come back."""
    return Problem(503, code, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def problem_of(status: int, headers: Mapping[str, str] | None = None) -> Problem:
    """The answer where nothing but the status is known: what the server or the framework refuses by itself."""
    return Problem(
        status, _CODES.get(status, "refused"), _DETAILS.get(status, "The request was refused."), headers=headers
    )


def install(app: QuartTrio) -> None:
    """Have every way in which a request can fail answered as a problem."""
    app.register_error_handler(Problem, _on_problem)
    app.register_error_handler(DatabaseUnavailable, _on_outage)
    app.register_error_handler(HTTPException, _on_http_exception)
    app.register_error_handler(Exception, _on_bug)


async def _on_problem(problem: Problem) -> Response:
    return problem.response()


async def _on_outage(outage: DatabaseUnavailable) -> Response:
    log.warning("database.unavailable", reason=str(outage))
    if request.method == "GET" or g.get("key_id") is None:  # nothing was begun that could be half done
        problem = unavailable("database_unavailable", "The database does not answer at the moment. Try again soon.")
    else:
        problem = unavailable(
            "outcome_unknown",
            "The database went away: this may or may not have been done. Look before you repeat it; "
            "an emit with an event_id can be repeated as it is.",
        )
    return problem.response()


async def _on_http_exception(error: HTTPException) -> Response:
    """What Quart and Werkzeug refuse by themselves: routing, the body's size and pace."""
    headers = {name: value for name, value in error.get_headers() if name in {"Allow", "Retry-After"}}
    return problem_of(error.code or 500, headers).response()


async def _on_bug(error: Exception) -> Response:
    """The caller gets a number to quote, the log gets the rest."""
    incident = secrets.token_hex(6)
    route = request.url_rule.rule if request.url_rule else None
    log.error("request.failed", incident=incident, method=request.method, route=route, exc_info=error)
    return Problem(500, "internal", f"Something went wrong on our side, and was logged as {incident}.").response()
