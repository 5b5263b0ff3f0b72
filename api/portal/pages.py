"""From a visit and facts to a page: the templates, what they can ask for, and the headers that every page carries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from quart import Response, request

from api.portal.assets import Assets
from api.portal.explain import OUTCOMES, RETRIED, STATES
from api.portal.forms import SENTENCES
from api.portal.visit import Visit
from api.portal.words import LANGUAGES, Words
from daemon import clock

_HEADERS: Final[Mapping[str, str]] = {
    # No inline script or style, not even by a nonce: nothing that a stranger gets into a page can run or load.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    # To other sites nothing; to our own the whole address, without which browsers send `Origin: null` with a form.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


SHOWN_CHARACTERS: Final = 64 * 1024
"""Of a body. Whoever wants to read more of it reads it elsewhere."""
_TOKEN: Final = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\],:]|[^\s{}\[\],:"]+')


@dataclass(frozen=True, slots=True)
class Tab:
    """An entry of the portal's menu."""

    name: str
    url: str
    icon: str


TABS: Final = (
    Tab("Overview", "/portal/", "gauge"),
    Tab("Endpoints", "/portal/endpoints", "plug"),
    Tab("Deliveries", "/portal/deliveries", "list"),
    Tab("Event catalogue", "/portal/catalogue", "book"),
)


class Pages:
    """All templates."""

    def __init__(self, assets: Assets) -> None:
        self.assets = assets
        self._templates = Environment(
            loader=PackageLoader("api.portal"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters |= {"iso": clock.iso, "utc": _utc, "pretty": pretty, "grouped": _grouped}
        known: dict[str, object] = self._templates.globals  # pyright: ignore[reportAssignmentType] its own only
        known |= {
            "asset": assets.url,
            "languages": LANGUAGES,
            "tabs": TABS,
            "sentences": SENTENCES,
            "states": STATES,
            "outcomes": OUTCOMES,
            "retried_words": RETRIED,
        }
        known["parts"] = self._templates.get_template("parts.html").module

    def page(self, visit: Visit, template: str, status: int = 200, **facts: object) -> Response:
        """A page, or a piece of one."""
        words = Words(visit.language)
        text = self._templates.get_template(template).render(
            t=words,
            visit=visit,
            csrf=visit.session.csrf if visit.session else "",
            here=request.full_path.rstrip("?") if request.method == "GET" else f"{visit.realm.path}/",
            **facts,
        )
        answer = Response(text, status, content_type="text/html; charset=utf-8")
        answer.headers.update(_HEADERS)
        return answer


def pretty(text: str) -> str:
    """JSON with its lines set out, for eyes; anything else as it is. Long text is cut.

    Its tokens stay as they are: a number read and written again might be another one, or megabytes long.
    """
    if len(text) > SHOWN_CHARACTERS:
        return text[:SHOWN_CHARACTERS] + "\n…"
    if not text.lstrip().startswith(("{", "[")) or not _is_json(text):
        return text
    lines, depth, before = [""], 0, ""
    for part in _TOKEN.findall(text):
        if part in "}]":
            depth -= 1
            if before not in "{[":
                lines.append("  " * depth)
        elif before and before in "{[,":
            lines.append("  " * depth)
        lines[-1] += ": " if part == ":" else part
        depth += part in "{["
        before = part
    return "\n".join(lines)


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return False
    return True


def _utc(moment: datetime | str) -> str:
    """As in 2026-01-31 08:00:00 UTC: what is shown until the browser puts its own time zone's in its place."""
    text = moment if isinstance(moment, str) else clock.iso(moment)
    return text[:19].replace("T", " ") + " UTC"


def _grouped(number: int) -> str:
    return f"{number:,}"
