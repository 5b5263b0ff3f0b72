"""What pages say, in the reader's language. English is what stands in the templates; the others are looked up by it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from api.portal.arabic import ARABIC

Language = Literal["en", "ar"]

LANGUAGES: Final[dict[Language, str]] = {"en": "English", "ar": "العربية"}
"""Each by its own name."""
_LEFT_TO_RIGHT: Final = re.compile(r"[0-9]+(?:xx|(?: [A-Z][A-Za-z]*)+)|https://")
"""As in 404 Not Found. Among Arabic letters the number, or the slashes, would go to the other side (UAX #9)."""


@dataclass(frozen=True, slots=True)
class Words:
    """Called with an English text and the values of its `{places}`. What has no translation stays English."""

    language: Language

    @property
    def direction(self) -> Literal["ltr", "rtl"]:
        """Which way the language is written."""
        return "rtl" if self.language == "ar" else "ltr"

    def __call__(self, text: str, **values: object) -> str:
        """The text in the reader's language."""
        said = text
        if self.language == "ar" and text in ARABIC:
            said = _LEFT_TO_RIGHT.sub("\u2066\\g<0>\u2069", ARABIC[text])
        return said.format_map(values) if values else said
