"""Fixtures of the browser's tests: one product and one Chromium for all of them, a customer and a window for each."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final, Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from api.portal.words import Language, Words
from tests.support.migrated import copy_of, drop
from tests.support.site import Site, running_site

Look = Literal["light", "dark"]

MAIN: Final[list[tuple[Language, Look, int]]] = [("en", "light", 1280), ("ar", "dark", 360)]
ALL: Final[list[tuple[Language, Look, int]]] = list(product(("en", "ar"), ("light", "dark"), (1280, 360)))
LOOKS: Final = ALL if os.environ.get("BROWSER") == "all" else MAIN
"""Language, look and width of a window. `make browser` takes all of them, other runs two."""
WAIT_MS = 10_000
PICTURES = Path(__file__).parents[1] / "out"


@dataclass(slots=True)
class Window:
    """A browser window of a customer of its own. `complaints` is what its console and its pages' scripts say."""

    page: Page
    site: Site
    customer_id: str
    key: str
    say: Words
    look: Look
    width: int
    complaints: list[str]

    def sign_in(self) -> None:
        self.page.goto(f"{self.site.url}/portal/login")
        self.page.get_by_label(self.say("API key")).fill(self.key)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url("**/portal/")

    def see(self, path: str) -> None:
        self.page.goto(self.site.url + path)

    def button(self, words: str) -> None:
        self.page.get_by_role("button", name=self.say(words), exact=True).click()

    def link(self, words: str) -> None:
        """Follows it, until the page behind it is there: a click alone comes back before its answer has."""
        link = self.page.get_by_role("link", name=self.say(words), exact=True).first
        with self.page.expect_navigation():
            link.click()

    def shows(self, words: str, **values: object) -> None:
        """Waits until the page says so."""
        self.page.get_by_text(self.say(words, **values)).first.wait_for()

    def picture(self, name: str, *, whole: bool = True) -> None:
        """Into tests/out, which git does not know; of the whole page, or what a window shows of it.

        What moves is at its end, so that the same page makes the same picture. Nothing may stick out at a side.
        """
        assert self.page.evaluate("document.documentElement.scrollWidth") <= self.width, name
        PICTURES.mkdir(exist_ok=True)
        file = PICTURES / f"{name}-{self.say.language}-{self.look}-{self.width}.png"
        self.page.screenshot(path=file, full_page=whole, animations="disabled", caret="hide")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window. Its sandbox needs an account that is not root."""
    program = shutil.which("chromium")
    if program is None:
        (pytest.fail if "CI" in os.environ else pytest.skip)("Debian's chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(embedded_template: str) -> Iterator[Site]:
    """The product at work, with an endpoint to send to.

    It runs in a thread and shall not outlive what needs it: Hypothesis takes its use of `random` for a test's own.
    """
    url = copy_of(embedded_template)
    with running_site(url) as running:
        yield running
    drop(url)


OpenWindow = Callable[..., Window]


@pytest.fixture
def open_window(chromium: Browser, site: Site) -> Iterator[OpenWindow]:
    """Opens windows; at the end none of them may have complained."""
    contexts: list[BrowserContext] = []
    windows: list[Window] = []

    def open_one(language: Language = "en", look: Look = "light", width: int = 1280) -> Window:
        context = chromium.new_context(
            viewport={"width": width, "height": 800},
            color_scheme=look,
            locale={"en": "en-GB", "ar": "ar-SA"}[language],
            timezone_id={"en": "Europe/Paris", "ar": "Asia/Riyadh"}[language],
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        customer_id = f"cust_{secrets.token_hex(4)}"
        key = site.key_of(customer_id)
        window = Window(context.new_page(), site, customer_id, key, Words(language), look, width, [])

        def note(message: ConsoleMessage) -> None:
            if message.type in {"error", "warning"} and "status of 4" not in message.text:  # a refused form is one
                window.complaints.append(message.text)

        window.page.on("console", note)
        window.page.on("pageerror", lambda error: window.complaints.append(str(error)))
        windows.append(window)
        return window

    yield open_one
    for context in contexts:
        context.close()
    assert [window.complaints for window in windows if window.complaints] == []


@pytest.fixture(params=LOOKS, ids=lambda look: "-".join(map(str, look)))
def window(open_window: OpenWindow, request: pytest.FixtureRequest) -> Window:
    """A window of a customer of its own, in each look."""
    return open_window(*request.param)
