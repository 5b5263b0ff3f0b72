"""A browser of the simplest kind: it keeps cookies, follows where it is sent, and posts the forms that pages have."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import unescape

import httpx

from tests.support.api import Served

_CSRF = re.compile(r'name="_csrf" value="([0-9a-f]+)"')


@dataclass(slots=True)
class Visitor:
    """`csrf` is what the last page's forms carried."""

    client: httpx.AsyncClient
    origin: str
    csrf: str = field(default="")

    async def see(self, path: str, **query: str) -> httpx.Response:
        """A page, with what it says in plain text."""
        return self._read(await self.client.get(path, params=query or None))

    async def send(
        self, path: str, *, headers: dict[str, str] | None = None, **fields: str | list[str]
    ) -> httpx.Response:
        """A form, as the page that was seen last has it."""
        sent = {"Origin": self.origin} | (headers or {})
        return self._read(await self.client.post(path, data={"_csrf": self.csrf} | fields, headers=sent))

    def _read(self, answer: httpx.Response) -> httpx.Response:
        if found := _CSRF.search(answer.text):
            self.csrf = found[1]
        return answer


def text_of(answer: httpx.Response) -> str:
    """What a page says, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", answer.text)).split())


@asynccontextmanager
async def open_visitor(api: Served, customer: str | None = None) -> AsyncGenerator[Visitor]:
    """A browser; in which `customer`'s key was entered, if one is named."""
    async with httpx.AsyncClient(base_url=api.url, timeout=20, trust_env=False, follow_redirects=True) as client:
        visitor = Visitor(client, api.url)
        if customer is not None:
            place = "/ops/login" if customer == "ops" else "/portal/login"
            entered = await visitor.send(place, key=api.keys[customer])
            assert entered.status_code == 200, entered.text
        yield visitor
