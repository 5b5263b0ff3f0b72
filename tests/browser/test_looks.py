"""Every page in every look: no serious fault for those who cannot see, and nothing sticks out on a narrow screen."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.browser.beside import emit, subscribe
from tests.browser.conftest import Window
from tests.support.answers import status


@pytest.mark.timeout(150)
def test_every_page_is_accessible_and_fits(window: Window) -> None:
    page = window.page
    bad = f"/{window.customer_id}"
    window.site.receiver.answer(bad, status(500, b'{"error": "database is locked"}'))
    first = subscribe(window, bad, description="Staging", events=["deal.won", "deal.lost", "lead.created"])
    subscribe(window, "/good", description="Production")
    event_id = emit(window, count=2)
    window.see("/portal/login")
    check(window, "login")
    window.sign_in()

    async def attempt() -> str:
        log = await window.site.api.ops.get(
            "/deliveries", customer_id=window.customer_id, event_id=event_id, failed_only=True
        )
        return log.json()["deliveries"][0]["id"]

    one = f"/portal/endpoints/{first}"
    pages = {
        "overview": "/portal/",
        "endpoints": "/portal/endpoints",
        "endpoint": one,
        "edit": f"{one}/edit",
        "rotate": f"{one}/rotate",
        "recover": f"{one}/recover",
        "delete": f"{one}/delete",
        "deliveries": "/portal/deliveries",
        "delivery": f"/portal/deliveries/{window.site.call(attempt)}",
        "catalogue": "/portal/catalogue",
        "docs": "/docs",
        "nothing": "/portal/nothing",
    }
    for name, path in pages.items():
        window.see(path)
        check(window, name)
    window.see("/ops/login")
    page.locator("#key").fill(window.site.api.keys["ops"])
    page.keyboard.press("Enter")
    page.wait_for_url("**/ops")
    check(window, "ops")


def check(window: Window, name: str) -> None:
    """No fault of weight by axe's rules, and, which the picture looks for, no need to scroll sideways."""
    found = Axe().run(window.page, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [
        (one["id"], [node["html"][:200] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in {"serious", "critical"}
    ]
    assert serious == [], name
    window.picture(f"page-{name}", whole=name != "docs")
