"""Who visits, how the page shall look to them, and whether a form came from our own pages."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, cast, get_args
from urllib.parse import urlsplit

from quart import Response, request
from werkzeug.datastructures import MultiDict

from api.auth import Caller
from api.errors import Problem
from api.portal.words import Language
from api.services import FIRST_S, Services
from daemon import clock
from daemon.store import portal

Form = MultiDict[str, str]
Theme = Literal["auto", "light", "dark"]

LANGUAGE_COOKIE: Final = "dealix_language"
THEME_COOKIE: Final = "dealix_theme"
_PREFERENCE_S: Final = 365 * 86_400


@dataclass(frozen=True, slots=True)
class Realm:
    """A part of the site with a session of its own: its cookie goes to the pages below `path` and nowhere else."""

    cookie: str
    path: str
    is_ops: bool

    @property
    def login(self) -> str:
        """Where strangers are sent."""
        return f"{self.path}/login"


CUSTOMERS: Final = Realm("dealix_portal", "/portal", is_ops=False)
OPERATORS: Final = Realm("dealix_ops", "/ops", is_ops=True)


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that is in. `token` is its cookie, `csrf` what its forms carry."""

    caller: Caller
    token: str
    expires_at: datetime

    @property
    def csrf(self) -> str:
        """Made from the cookie, which no other site's page can read: nothing to store, nothing to expire."""
        return hmac.new(self.token.encode(), b"csrf", hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class Visit:
    """One request for a page."""

    realm: Realm
    language: Language
    theme: Theme
    session: Session | None

    @property
    def caller(self) -> Caller:
        """For whom the page is. Only behind the door."""
        if self.session is None:
            raise RuntimeError("this page is open to anyone")
        return self.session.caller


def preferences() -> tuple[Language, Theme]:
    """What the browser's cookies choose, else what it asks for."""
    language, theme = request.cookies.get(LANGUAGE_COOKIE), request.cookies.get(THEME_COOKIE)
    if language not in get_args(Language):
        language = request.accept_languages.best_match(list(get_args(Language)), "en")
    return cast("Language", language), cast("Theme", theme) if theme in get_args(Theme) else "auto"


async def begin(services: Services, realm: Realm) -> Visit:
    """The visit that the present request is. Raises DatabaseUnavailable."""
    language, theme = preferences()
    token = request.cookies.get(realm.cookie)
    session = None
    if token:
        async with services.pool.connection(FIRST_S) as conn:
            found = await portal.find(conn, token)
        if found is not None and (found.customer_id is None) == realm.is_ops:
            session = Session(Caller(found.origin, found.customer_id), token, found.expires_at)
    return Visit(realm, language, theme, session)


async def read_form(services: Services, session: Session | None) -> Form:
    """The fields of a form that came from one of our own pages. Raises Problem 403 for any other.

    Twice, since each alone has failed somewhere: by where the browser says that it comes from, and by a token that only
    our pages know. A form to sign in has no session yet, and the first alone.
    """
    if not _is_from_here(services.settings.api.public_url):
        raise _foreign()
    form = cast("Form", await request.form)
    if session is not None and not hmac.compare_digest(form.get("_csrf", "").encode(), session.csrf.encode()):
        raise _foreign()
    return form


def keep(answer: Response, realm: Realm, token: str, expires_at: datetime, *, public_url: str | None) -> None:
    """Let the browser in, until `expires_at`.

    Lax, not Strict: a link to the portal is opened from a mail or another site, and its cookie has to come along with
    the page that follows. No form of another site brings it.
    """
    answer.set_cookie(
        realm.cookie,
        token,
        path=realm.path,
        httponly=True,
        samesite="Lax",
        secure=is_https(public_url),
        max_age=max(int((expires_at - clock.now()).total_seconds()), 1),
    )


def forget(answer: Response, realm: Realm) -> None:
    """Take the cookie back."""
    answer.delete_cookie(realm.cookie, path=realm.path, httponly=True, samesite="Lax")


def prefer(answer: Response, cookie: str, value: str, *, public_url: str | None) -> None:
    """Remember a language or theme."""
    answer.set_cookie(
        cookie, value, path="/", httponly=True, samesite="Lax", secure=is_https(public_url), max_age=_PREFERENCE_S
    )


def is_https(public_url: str | None) -> bool:
    """Whether browsers reach us by https: by the setting, else by this request, or what a proxy says of it.

    Nobody gains by a wrong X-Forwarded-Proto: it makes cookies stricter, in the browser that it came from.
    """
    if public_url is not None:
        return public_url.startswith("https:")
    return request.scheme == "https" or request.headers.get("X-Forwarded-Proto") == "https"


def _is_from_here(public_url: str | None) -> bool:
    origin = request.headers.get("Origin")
    if origin is None:
        return request.headers.get("Sec-Fetch-Site") == "same-origin"
    try:
        host = urlsplit(origin).netloc
    except ValueError:
        return False
    return origin == public_url or (bool(host) and host.lower() == request.host.lower())


def _foreign() -> Problem:
    return Problem(
        403, "foreign_form", "The form did not come from this site, or its session is over. Load the page anew."
    )
