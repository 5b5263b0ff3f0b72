"""Coming in and going out: links, keys, languages and themes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import get_args

from quart import Response, request

from api.client_address import client_address
from api.portal import visit
from api.portal.frame import Frame, goto
from api.portal.visit import CUSTOMERS, LANGUAGE_COOKIE, OPERATORS, THEME_COOKIE, Form, Realm, Theme, Visit
from api.portal.words import Language
from api.services import FIRST_S
from daemon.errors import DatabaseUnavailable
from daemon.store import portal
from daemon.store.connection import Connection

Entered = tuple[str, datetime]
"""The cookie of a new session, and when it ends."""


class Doors:
    """The views."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._public_url = frame.services.settings.api.public_url

    async def enter(self, visitor: Visit) -> Response:
        """A link was opened: in, and on to a page whose address has no token."""
        token = str((request.view_args or {})["token"])
        entered = await self._let_in(token, lambda conn: portal.enter_by_link(conn, token))
        if entered is None:
            return self._login_page(visitor, CUSTOMERS, 403, fault="link")
        answer = goto(f"{CUSTOMERS.path}/")
        visit.keep(answer, CUSTOMERS, *entered, public_url=self._public_url)
        return answer

    async def login(self, visitor: Visit) -> Response:
        """Where a key is asked for."""
        return self._login_page(visitor, CUSTOMERS)

    async def ops_login(self, visitor: Visit) -> Response:
        """As `login`, for an ops key."""
        return self._login_page(visitor, OPERATORS)

    async def enter_by_key(self, visitor: Visit, form: Form) -> Response:
        """A customer's key was given."""
        return await self._enter_by_key(visitor, form, CUSTOMERS)

    async def ops_enter_by_key(self, visitor: Visit, form: Form) -> Response:
        """An ops key was given."""
        return await self._enter_by_key(visitor, form, OPERATORS)

    async def leave(self, visitor: Visit, _: Form) -> Response:
        """Out: the session is gone, not only its cookie."""
        return await self._leave(visitor, CUSTOMERS)

    async def ops_leave(self, visitor: Visit, _: Form) -> Response:
        """As `leave`."""
        return await self._leave(visitor, OPERATORS)

    async def prefer(self, _: Visit, form: Form) -> Response:
        """Another language or theme, and back to the page where it was chosen."""
        back = form.get("back", "")
        is_ours = back.startswith("/") and not back.startswith(("//", "/\\"))
        answer = goto(back if is_ours and back.isprintable() and back.isascii() else f"{CUSTOMERS.path}/")
        for cookie, name, allowed in ((LANGUAGE_COOKIE, "language", Language), (THEME_COOKIE, "theme", Theme)):
            if (value := form.get(name)) in get_args(allowed) and value is not None:
                visit.prefer(answer, cookie, value, public_url=self._public_url)
        return answer

    async def _enter_by_key(self, visitor: Visit, form: Form, realm: Realm) -> Response:
        key = form.get("key", "").strip()
        entered = await self._let_in(key, lambda conn: portal.enter_by_key(conn, key, is_ops=realm.is_ops))
        if entered is None:
            return self._login_page(visitor, realm, 403, fault="key")
        answer = goto(f"{realm.path}/" if realm is CUSTOMERS else realm.path)
        visit.keep(answer, realm, *entered, public_url=self._public_url)
        return answer

    async def _let_in(self, secret: str, enter: Callable[[Connection], Awaitable[Entered | None]]) -> Entered | None:
        """What `enter` says of a key or a link's token; failures are limited as they are at the API's own door."""
        services = self._frame.services
        guessing = services.limits.key_guessing
        address = client_address(request.remote_addr, request.headers, services.settings.api.trusted_proxies)
        digest = portal.digest_of(secret)
        guessing.begin(address, digest)
        try:
            async with services.pool.connection(FIRST_S) as conn:
                entered = await enter(conn)
        except DatabaseUnavailable:
            guessing.undecided(address, digest)
            raise
        (guessing.bad if entered is None else guessing.good)(address, digest)
        return entered

    async def _leave(self, visitor: Visit, realm: Realm) -> Response:
        if visitor.session is not None:
            async with self._frame.services.pool.connection(FIRST_S) as conn:
                await portal.leave(conn, visitor.session.token)
        answer = goto(realm.login)
        visit.forget(answer, realm)
        return answer

    def _login_page(self, visitor: Visit, realm: Realm, status: int = 200, *, fault: str | None = None) -> Response:
        return self._frame.page(visitor, "login.html", status, realm=realm, fault=fault)


def install(frame: Frame) -> None:
    """Their addresses."""
    it = Doors(frame)
    frame.show("/portal/enter/<token>", it.enter, open_to_anyone=True)
    frame.show("/portal/login", it.login, open_to_anyone=True)
    frame.take("/portal/login", it.enter_by_key, open_to_anyone=True)
    frame.take("/portal/leave", it.leave)
    frame.take("/portal/preferences", it.prefer, open_to_anyone=True)
    frame.show("/ops/login", it.ops_login, realm=OPERATORS, open_to_anyone=True)
    frame.take("/ops/login", it.ops_enter_by_key, realm=OPERATORS, open_to_anyone=True)
    frame.take("/ops/leave", it.ops_leave, realm=OPERATORS)
