"""Arabic."""

from __future__ import annotations

from typing import Final

ARABIC: Final[dict[str, str]] = {}
