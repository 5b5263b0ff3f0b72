"""What the tests measured, shown at the end of every run, whether they passed or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

Tell = Callable[[str], None]
FIGURES: Final = pytest.StashKey[list[str]]()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Notes a line for the summary."""
    told = request.config.stash.setdefault(FIGURES, [])
    told.append(f"{request.node.name}:")
    return lambda line: told.append(f"    {line}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the notes."""
    if told := terminalreporter.config.stash.get(FIGURES, []):
        terminalreporter.section("measured")
        for line in told:
            terminalreporter.line(line)
