"""What people do in the portal, from the first link to an endpoint that works again, in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from api.portal.words import Language
from tests.browser.conftest import OpenWindow, Window
from tests.support.answers import status

BOTH = pytest.mark.parametrize("language", ["en", "ar"])


def emit(window: Window, event_type: str = "deal.won", count: int = 1) -> str:
    """Emit events for the window's customer; the id of the last one, whose first attempts have ended."""

    async def send() -> str:
        event = {"customer_id": window.customer_id, "event_type": event_type, "payload": {"deal_id": 7, "n": 1.0}}
        answers = [await window.site.api.ops.post("/events/emit", event, wait_s=10) for _ in range(count)]
        return answers[-1].json()["event_id"]

    return window.site.call(send)


def subscribe(window: Window, path: str, **fields: object) -> str:
    """An endpoint of the window's customer at the receiver; its id."""

    async def make() -> str:
        body = {"customer_id": window.customer_id, "endpoint_url": window.site.receiver.url(path)} | fields
        return (await window.site.api.ops.post("/webhooks", body)).json()["id"]

    return window.site.call(make)


@BOTH
def test_a_newcomer_adds_an_endpoint_tests_it_and_watches_an_event_arrive(
    open_window: OpenWindow, language: Language
) -> None:
    window = open_window(language)
    page, path = window.page, f"/{window.customer_id}"

    async def make_link() -> str:
        made = await window.site.api.ops.post("/portal-links", {"customer_id": window.customer_id})
        return made.json()["url"]

    page.goto(window.site.call(make_link))
    page.wait_for_url("**/portal/")
    window.picture("first-visit")
    window.link("Add your first endpoint")
    page.get_by_label(window.say("URL")).fill("https://10.0.0.1/hook")
    window.button("Add endpoint")
    window.shows("This address is not reachable from the internet, so it is never called.")
    page.get_by_label(window.say("URL")).fill(window.site.receiver.url(path))
    page.get_by_label(window.say("Description")).fill("CRM <script>alert(1)</script>")
    page.get_by_label(window.say("Only these")).check()
    page.get_by_label("deal.won").check()
    window.picture("endpoint-form")
    window.button("Add endpoint")
    window.shows("Copy it now: it is not shown again. Whoever has it can forge events to this endpoint.")
    secret = page.locator("pre").first.inner_text()
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{44}", secret)
    page.get_by_role("button", name=window.say("Copy")).first.click()
    expect(page.locator("#toast")).not_to_be_empty()
    assert page.evaluate("navigator.clipboard.readText()") == secret
    window.picture("secret")
    page.reload()
    assert secret not in page.content()
    assert page.locator("h1").inner_text() == window.site.receiver.url(path)
    window.button("Send test")
    page.locator("#test-result .badge.good").wait_for()
    window.picture("tested")
    page.get_by_role("link", name=window.say("Deliveries"), exact=True).click()
    assert page.locator("#rows tr").count() == 1
    emit(window)
    expect(page.locator("#rows tr")).to_have_count(2)
    assert page.locator("#rows tr.fresh").count() == 1
    window.picture("live")


@BOTH
def test_a_failure_is_explained_and_sent_again(open_window: OpenWindow, language: Language) -> None:
    window = open_window(language)
    page, path = window.page, f"/{window.customer_id}"
    window.site.receiver.answer(path, status(404, b'{"error": "no route"}'), status(200))
    subscribe(window, path)
    emit(window)
    window.sign_in()
    window.see("/portal/deliveries?outcome=failed")
    page.get_by_role("link", name="deal.won").click()
    window.shows("There is nothing at this address: the endpoint answered 404 Not Found.")
    for words in ("Dealix-Signature", '"n": 1.0', "no route"):
        assert words in page.locator("main").inner_text()
    window.picture("failure")
    window.button("Send again")
    window.shows("It will be sent again at once, as attempt {n}.", n=2)
    window.link("See all attempts")
    expect(page.locator("#rows tr")).to_have_count(2)
    assert page.locator("#rows .badge.good").count() == 1


@BOTH
def test_an_endpoint_that_was_off_is_enabled_and_gets_what_it_missed(
    open_window: OpenWindow, language: Language
) -> None:
    window = open_window(language)
    page, path = window.page, f"/{window.customer_id}"
    endpoint_id = subscribe(window, path)
    window.sign_in()
    window.see(f"/portal/endpoints/{endpoint_id}")
    window.button("Pause")
    window.shows("You paused this endpoint. New events do not match it; what was due before is kept.")
    emit(window, count=3)
    window.button("Send test")
    window.button("Enable it now")
    page.get_by_role("button", name=window.say("Pause")).wait_for()
    window.link("Recover")
    page.get_by_label(window.say("What was missed")).check()
    window.button("Only count")
    window.shows("Deliveries that would be sent: {count}", count=3)
    window.button("Start")
    page.wait_for_url("**/portal/recoveries/*")
    page.locator("#progress .badge.good").wait_for()
    assert page.locator("#progress dd").nth(1).inner_text() == "3"
    window.picture("recovered")
    assert len(window.site.receiver.at(path)) == 4


@BOTH
def test_a_secret_is_rotated_and_an_endpoint_edited_and_deleted(open_window: OpenWindow, language: Language) -> None:
    window = open_window(language)
    page, path = window.page, f"/{window.customer_id}"
    endpoint_id = subscribe(window, path)
    window.sign_in()
    window.see(f"/portal/endpoints/{endpoint_id}")
    window.link("Rotate secret")
    page.get_by_label(window.say("The old secret stays valid")).select_option("604800")
    window.button("Make a new secret")
    window.shows("Until this moment the old secret is valid too, and every request carries both signatures:")
    window.link("I have stored it")
    window.link("Edit")
    page.get_by_label(window.say("Description")).fill("Second life")
    window.button("Save")
    window.shows("Second life")
    window.link("Delete")
    window.button("Delete this endpoint")
    window.shows("No endpoint yet")


def test_language_theme_and_session_are_a_click_away(open_window: OpenWindow) -> None:
    window = open_window("en")
    page = window.page
    window.sign_in()
    window.see("/portal/deliveries?outcome=failed")
    page.get_by_role("button", name="العربية").click()
    assert page.locator("html").get_attribute("dir") == "rtl"
    assert page.url.endswith("/portal/deliveries?outcome=failed")
    page.get_by_role("button", name="English").click()
    assert page.locator("html").get_attribute("dir") == "ltr"
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    bright = page.evaluate(ground)
    page.get_by_role("button", name="Theme: as the system").click()
    page.get_by_role("button", name="Theme: dark").wait_for()
    assert page.evaluate(ground) != bright
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/portal/login")
    window.see("/portal/")
    assert page.url.endswith("/portal/login")


def test_the_overview_draws_its_charts_for_each_period(open_window: OpenWindow) -> None:
    window = open_window("en")
    subscribe(window, f"/{window.customer_id}")
    emit(window, count=3)
    window.sign_in()
    for period in ("24 hours", "7 days", "30 days"):
        window.page.get_by_role("link", name=period).click()
        window.page.locator("canvas").nth(2).wait_for()
        drawn = window.page.evaluate(
            "Array.from(document.querySelectorAll('canvas'), (c) => c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data.some((value) => value > 0))"
        )
        assert drawn == [True, True, True]
        assert "3" in window.page.locator(".figures dd").first.inner_text()
        window.picture(f"overview-{period.replace(' ', '')}")


def test_the_operator_sees_the_service_and_opens_a_portal(open_window: OpenWindow) -> None:
    window = open_window("en")
    page = window.page
    subscribe(window, f"/{window.customer_id}")
    emit(window)
    window.see("/ops")
    page.get_by_label("API key").fill(window.site.api.keys["ops"])
    page.keyboard.press("Enter")
    page.wait_for_url("**/ops")
    page.get_by_text("64 / 64").wait_for()
    window.picture("ops")
    page.get_by_label("Customer").fill(window.customer_id)
    window.button("Make a link")
    page.goto(page.locator("pre").inner_text())
    page.wait_for_url("**/portal/")
    assert window.customer_id in page.locator(".who").inner_text()


def test_the_reference_has_an_anchor_for_each_tag_and_operation(open_window: OpenWindow) -> None:
    window = open_window("en")
    page = window.page
    for anchor in ("tag/ecosystem", "tag/deliveries", "operation/create_webhook"):
        window.see(f"/docs#{anchor}")
        expect(page.locator(f'[id="{anchor}"]')).to_be_in_viewport()
    window.picture("reference", whole=False)
