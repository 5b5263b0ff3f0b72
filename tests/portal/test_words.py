"""Both languages say everything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from api.portal import explain, forms, health
from api.portal.arabic import ARABIC
from api.portal.endpoints import KINDS
from api.portal.pages import TABS
from api.portal.recoveries import PERIODS_S, STATES
from api.portal.words import Words
from tests.support.api import Served

TEMPLATES = Path(__file__).parents[2] / "api" / "portal" / "templates"
PLACES = re.compile(r"\{[a-z0-9]+\}")


def said_by_templates() -> Iterator[str]:
    for file in TEMPLATES.glob("*.html"):
        for _, text in re.findall(r"""\bt\((["'])(.*?)\1""", file.read_text()):
            yield text


def said_by_code() -> Iterator[str]:
    for one in explain.EVERY:
        yield from (one.what, one.advice)
    for one in health.EVERY:
        yield from (one.label, one.says)
    yield explain.RETRIED
    for words in KINDS.values():
        yield from words
    for texts in (explain.STATES, explain.OUTCOMES, forms.SENTENCES, PERIODS_S, STATES):
        yield from texts.values()
    yield from (tab.name for tab in TABS)


def test_whatever_a_page_says_it_can_say_in_arabic() -> None:
    said = {text for text in (*said_by_templates(), *said_by_code()) if text}
    assert len(said) > 300
    assert said - set(ARABIC) == set()


async def test_so_can_the_descriptions_of_the_event_types(api: Served) -> None:
    known = (await api.client.get("/api/v1/ecosystem/event-types")).json()["events"]
    assert {one["description"] for one in known} - set(ARABIC) == set()


def test_translations_have_the_same_places_and_are_written_in_arabic() -> None:
    for english, arabic in ARABIC.items():
        assert sorted(PLACES.findall(english)) == sorted(PLACES.findall(arabic)), english
        assert re.search(r"[\u0600-\u06ff]", arabic), english


def test_what_has_no_translation_stays_english() -> None:
    assert Words("ar")("Never heard of") == "Never heard of"
    assert Words("ar")("Attempt {n}", n=3) == "المحاولة 3"
    assert Words("en")("Attempt {n}", n=3) == "Attempt 3"


def test_a_number_before_latin_words_keeps_its_place_and_so_do_slashes() -> None:
    said = Words("ar")("There is nothing at this address: the endpoint answered 404 Not Found.")
    assert "\u2066404 Not Found\u2069" in said
    assert "\u2066https://\u2069" in Words("ar")("The URL has to begin with https://.")
    assert "\u2066" not in Words("ar")("The last 30 days")
