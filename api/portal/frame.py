"""What all pages share: the door before them, the check of their forms, and how their failures look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import msgspec
from quart import Response, g, request
from quart_trio import QuartTrio

from api.errors import MEDIA_TYPE, ProblemDocument
from api.operation import Values
from api.portal import visit
from api.portal.assets import PREFIX, Assets
from api.portal.operations import Operations
from api.portal.pages import Pages
from api.portal.visit import CUSTOMERS, OPERATORS, Form, Realm, Visit
from api.services import Services

View = Callable[[Visit], Awaitable[Response]]
FormView = Callable[[Visit, Form], Awaitable[Response]]

SITE: Final = ("/portal", "/ops", "/docs")
"""Below these, failures are pages too."""

A = TypeVar("A", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Frame:
    """What a page is made with."""

    app: QuartTrio
    services: Services
    pages: Pages
    operations: Operations

    def show(self, path: str, view: View, *, realm: Realm = CUSTOMERS, open_to_anyone: bool = False) -> None:
        """Have GETs of `path` answered by `view`; strangers are sent to sign in, unless it is open to anyone."""

        async def answer(**_: str) -> Response:
            visitor = await self._begin(realm)
            if visitor.session is None and not open_to_anyone:
                return self._to_login(realm)
            return await view(visitor)

        self._add(path, view.__name__, answer, "GET")

    def take(self, path: str, view: FormView, *, realm: Realm = CUSTOMERS, open_to_anyone: bool = False) -> None:
        """Have forms posted to `path` taken by `view`, if they came from our own pages."""

        async def answer(**_: str) -> Response:
            visitor = await self._begin(realm)
            if visitor.session is None and not open_to_anyone:
                return self._to_login(realm)
            form = await visit.read_form(self.services, None if open_to_anyone else visitor.session)
            return await view(visitor, form)

        self._add(path, view.__name__, answer, "POST")

    async def ask(
        self, visitor: Visit, name: str, answer: type[A], *, query: Values | None = None, body: Values | None = None
    ) -> A:
        """An operation of the API with the parameters of the present path. Raises Problem."""
        path = {key: str(value) for key, value in (request.view_args or {}).items()}
        return await self.operations.ask(visitor.caller, name, answer, path=path, query=query or {}, body=body or {})

    def page(self, visitor: Visit, template: str, status: int = 200, **facts: object) -> Response:
        """See `Pages.page`."""
        return self.pages.page(visitor, template, status, **facts)

    def _add(
        self, path: str, name: str, answer: Callable[..., Awaitable[Response]], method: Literal["GET", "POST"]
    ) -> None:
        self.app.add_url_rule(path, f"page.{name}", answer, methods=[method])

    async def _begin(self, realm: Realm) -> Visit:
        visitor = await visit.begin(self.services, realm)
        g.visit = visitor
        if visitor.session is not None:
            g.key_id = visitor.session.caller.key_id  # for the access log
        return visitor

    @staticmethod
    def _to_login(realm: Realm) -> Response:
        if request.headers.get("HX-Request"):
            return Response("", 401, headers={"HX-Redirect": realm.login})
        return goto(realm.login)


def install(app: QuartTrio, services: Services, operations: Operations) -> Frame:
    """Serve the assets, and show failures below `SITE` as pages."""
    assets = Assets()
    frame = Frame(app, services, Pages(assets), operations)
    app.add_url_rule(f"{PREFIX}/<version>/<path:name>", "page.asset", assets.serve, methods=["GET"])

    async def show_failure(response: Response) -> Response:
        if response.content_type != MEDIA_TYPE or not request.path.startswith(SITE) or request.path.startswith(PREFIX):
            return response
        problem = msgspec.json.decode(await response.get_data(as_text=False), type=ProblemDocument)
        shown = _failure(frame, problem)
        for name in ("Retry-After", "Allow"):
            if name in response.headers:
                shown.headers[name] = response.headers[name]
        return shown

    app.after_request(show_failure)
    return frame


def goto(url: str) -> Response:
    """Send the browser there by a GET."""
    return Response("", 303, headers={"Location": url})


def nobody(realm: Realm) -> Visit:
    """A visit of which nothing is known but what the browser prefers: before, or without, the database."""
    language, theme = visit.preferences()
    return Visit(realm, language, theme, None)


def _failure(frame: Frame, problem: ProblemDocument) -> Response:
    realm = OPERATORS if request.path.startswith(OPERATORS.path) else CUSTOMERS
    visitor: Visit = g.get("visit") or nobody(realm)
    template = "failure_short.html" if request.headers.get("HX-Request") else "failure.html"
    return frame.page(visitor, template, problem.status, problem=problem)
