"""Fixtures of the browser's tests: one product and one Chromium for all of them, a customer and a window for each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.support.migrated import copy_of, drop
from tests.support.site import Site, running_site


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


@pytest.fixture(scope="session")
def site(embedded_template: str) -> Iterator[Site]:
    """The product at work, with an endpoint to send to."""
    url = copy_of(embedded_template)
    with running_site(url) as running:
        yield running
    drop(url)


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where screenshots go: not into git."""
    folder = Path(__file__).parents[2] / "tests" / "out"
    folder.mkdir(exist_ok=True)
    return folder
