"""What people do in the portal, from the first link to an endpoint that works again, in a real browser."""

from __future__ import annotations

import json
import re
from typing import Final

from playwright.sync_api import expect

from api.verification import examples
from tests.browser.beside import emit, remember_a_month, run, subscribe, switch_off
from tests.browser.conftest import OpenWindow, Window
from tests.support.answers import status

SECRET: Final = re.compile(r"whsec_[A-Za-z0-9+/]{44}")
SLOW_S: Final = 0.3
"""An answer's time, so that four at a time leave a job something to do for a few seconds."""


def copied(window: Window) -> str:
    """What the first button to copy puts onto the clipboard."""
    window.page.get_by_role("button", name=window.say("Copy")).first.click()
    expect(window.page.locator("#toast")).not_to_be_empty()
    return window.page.evaluate("navigator.clipboard.readText()")


def secret_shown_once(window: Window, picture: str) -> str:
    """A secret that is shown, can be copied, and is gone when the page is loaded anew."""
    page = window.page
    window.shows("Copy it now: it is not shown again. Whoever has it can forge events to this endpoint.")
    secret = page.locator("pre").first.inner_text()
    assert SECRET.fullmatch(secret)
    window.picture(picture)
    assert copied(window) == secret
    page.reload()
    assert secret not in page.content()
    return secret


def test_a_newcomer_adds_an_endpoint_tests_it_and_watches_an_event_arrive(window: Window) -> None:
    page, path = window.page, f"/{window.customer_id}"
    window.site.receiver.answer(path, status(200, b'{"received": true}'))

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
    window.picture("endpoint-refused")
    page.get_by_label(window.say("URL")).fill(window.site.receiver.url(path))
    page.get_by_label(window.say("Description")).fill("CRM <script>alert(1)</script>")
    page.get_by_label(window.say("Only these")).check()
    page.get_by_label("deal.won").check()
    window.picture("endpoint-form")
    window.button("Add endpoint")
    secret_shown_once(window, "secret")
    assert page.locator("h1").inner_text() == window.site.receiver.url(path)
    window.button("Send test")
    page.locator("#test-result .badge.good").wait_for()
    assert json.loads(page.locator("#test-result pre").inner_text()) == {"received": True}
    window.shows("The last delivery was accepted.")
    expect(page.locator("#recent tbody tr")).to_have_count(1)
    expect(page.locator("#health rect")).to_have_count(1)
    window.picture("tested")
    page.get_by_role("link", name=window.say("Deliveries"), exact=True).click()
    assert page.locator("#rows tr").count() == 1
    emit(window)
    expect(page.locator("#rows tr")).to_have_count(2)
    assert page.locator("#rows tr.fresh").count() == 1
    window.picture("live")


def test_a_failure_is_explained_and_sent_again(window: Window) -> None:
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
    window.picture("sent-again")
    window.link("See all attempts")
    expect(page.locator("#rows tr")).to_have_count(2)
    assert page.locator("#rows .badge.good").count() == 1


def test_the_log_is_filtered_and_what_comes_meanwhile_too(window: Window) -> None:
    page, path = window.page, f"/{window.customer_id}"
    window.site.receiver.answer(f"{path}/old", status(404))
    subscribe(window, f"{path}/new")
    old = subscribe(window, f"{path}/old")
    emit(window, count=2)
    event_id = emit(window, "deal.lost")
    window.sign_in()
    window.link("Deliveries")
    rows = page.locator("#rows tr")
    expect(rows).to_have_count(6)

    def choose(name: str, value: str) -> None:
        page.get_by_label(window.say(name), exact=True).select_option(value)

    choose("Outcome", "failed")
    window.button("Show")
    expect(rows).to_have_count(3)
    choose("Event type", "deal.lost")
    window.button("Show")
    expect(rows).to_have_count(1)
    emit(window)
    emit(window, "deal.lost")
    expect(rows).to_have_count(2)
    expect(page.locator("#rows tr.fresh")).to_have_count(1)
    window.picture("filtered")
    window.link("Clear")
    choose("Endpoint", old)
    page.get_by_label(window.say("Event ID"), exact=True).fill(event_id)
    window.button("Show")
    expect(rows).to_have_count(1)
    page.get_by_label(window.say("From (UTC)"), exact=True).fill("2099-01-01T00:00")
    window.button("Show")
    window.shows("No delivery fits these filters.")
    window.picture("nothing-fits")


def test_how_each_endpoint_does_is_seen_at_a_glance(window: Window) -> None:
    page, path = window.page, f"/{window.customer_id}"
    window.site.receiver.answer(f"{path}/Failing", status(500, b'{"error": "database is locked"}'))
    window.site.receiver.answer(f"{path}/Disabled", status(410))
    told = {
        "Healthy": "The last delivery was accepted.",
        "Failing": "The last attempts did not deliver. The delivery log tells why.",
        "On hold": "After several failures in a row it gets no traffic for a while, then one request as a probe.",
        "Disabled": "It answered 410 Gone, which means: never again. Enable it if that was wrong.",
        "Paused": "You paused this endpoint. New events do not match it; what was due before is kept.",
        "Waiting": "Nothing was sent yet. Send a test to see that it works.",
    }
    made = {label: subscribe(window, f"{path}/{label.replace(' ', '')}", description=label) for label in told}
    switch_off(window, made["Paused"])
    emit(window)
    run(
        window,
        "UPDATE dealix.subscription_health SET circuit = 'open', cooldown_s = 300, consecutive_failures = 5,"
        " last_status_code = 503, reopen_at = now() + interval '5 minutes' WHERE subscription_id = %(id)s",
        id=made["On hold"],
    )
    made["Waiting"] = subscribe(window, f"{path}/new", description="Waiting")
    window.sign_in()
    window.link("Endpoints")
    for label, endpoint_id in made.items():
        card = page.locator(".cards > li", has=page.locator(f"a[href$='{endpoint_id}']"))
        assert card.locator(".badge").inner_text() == window.say(label)
    window.picture("health")
    window.link("Overview")
    assert page.locator(".item .badge").count() == 3
    for label, words in told.items():
        window.see(f"/portal/endpoints/{made[label]}")
        window.shows(words)


def test_an_endpoint_that_was_off_is_enabled_and_gets_what_it_missed(window: Window) -> None:
    page, path = window.page, f"/{window.customer_id}"
    endpoint_id = subscribe(window, path)
    window.sign_in()
    window.see(f"/portal/endpoints/{endpoint_id}")
    window.button("Pause")
    window.shows("You paused this endpoint. New events do not match it; what was due before is kept.")
    window.picture("paused")
    emit(window, count=24)
    window.button("Send test")
    page.get_by_role("button", name=window.say("Enable it now")).wait_for()
    window.picture("offer")
    window.button("Enable it now")
    page.get_by_role("button", name=window.say("Pause")).wait_for()
    window.site.receiver.answer(path, status(200, delay_s=SLOW_S))
    window.link("Recover")
    page.get_by_label(window.say("What was missed")).check()
    window.button("Only count")
    window.shows("Deliveries that would be sent: {count}", count=24)
    window.picture("counted")
    window.button("Start")
    page.wait_for_url("**/portal/recoveries/*")
    expect(page.locator("#progress progress")).to_have_attribute("value", re.compile("^(1?[1-9]|10|2[0-3])$"))
    window.picture("recovering")
    page.locator("#progress .badge.good").wait_for(timeout=30_000)
    assert page.locator("#progress dd").nth(1).inner_text() == "24"
    window.picture("recovered")
    assert len(window.site.receiver.at(path)) == 25


def test_a_secret_is_rotated_and_an_endpoint_edited_and_deleted(window: Window) -> None:
    page, path = window.page, f"/{window.customer_id}"
    endpoint_id = subscribe(window, path)
    window.sign_in()
    window.see(f"/portal/endpoints/{endpoint_id}")
    window.link("Rotate secret")
    page.get_by_label(window.say("The old secret stays valid")).select_option("604800")
    window.picture("rotate")
    window.button("Make a new secret")
    window.shows("Until this moment the old secret is valid too, and every request carries both signatures:")
    secret_shown_once(window, "rotated")
    emit(window)
    (request,) = window.site.receiver.at(path)
    assert request.headers["dealix-signature"].count("v1=") == 2
    window.link("Edit")
    page.get_by_label(window.say("Description")).fill("Second life")
    window.picture("edit")
    window.button("Save")
    window.shows("Second life")
    window.link("Delete")
    window.picture("delete")
    window.button("Delete this endpoint")
    window.shows("No endpoint yet")
    window.picture("deleted")


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


def test_whoever_uses_the_keyboard_sees_where_they_are(window: Window) -> None:
    page = window.page
    subscribe(window, f"/{window.customer_id}")
    window.sign_in()
    window.link("Endpoints")
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == window.say("Skip to the content")
    expect(page.locator(":focus")).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator("main :focus").inner_text().strip() == window.say("Add endpoint")
    assert page.locator(":focus").evaluate("(it) => getComputedStyle(it).outlineStyle") == "solid"
    window.picture("focus", whole=False)


def test_the_overview_draws_its_charts_for_each_period(window: Window) -> None:
    page = window.page
    window.site.receiver.answer(f"/{window.customer_id}/old", status(404))
    subscribe(window, f"/{window.customer_id}/new")
    subscribe(window, f"/{window.customer_id}/old")
    remember_a_month(window)
    emit(window, count=3)
    window.sign_in()
    attempts = [0]
    for period in ("24 hours", "7 days", "30 days"):
        window.link(period)
        page.locator("canvas").nth(2).wait_for()
        drawn = page.evaluate(
            "Array.from(document.querySelectorAll('canvas'), (c) => c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data.some((value) => value > 0))"
        )
        assert drawn == [True, True, True]
        attempts.append(int(page.locator(".figures dd").first.inner_text().replace(",", "")))
        page.locator("[data-plot='deliveries']").hover()
        told = page.locator("[data-plot='deliveries'] .tip").inner_text()
        assert re.search(rf"{window.say('Delivered')}: [0-9,]+\n{window.say('Failed')}: [0-9,]+$", told)
        window.picture(f"overview-{period.replace(' ', '')}")
    assert attempts == sorted(set(attempts)), "a longer period has more attempts"


def test_the_catalogue_shows_a_body_of_each_type_and_how_to_verify_it(window: Window) -> None:
    page = window.page
    window.sign_in()
    window.link("Event catalogue")
    page.locator("summary", has_text="deal.won").click()
    shown = page.locator("[id='deal.won'] pre")
    body = json.loads(shown.inner_text())
    assert list(body) == ["api_version", "customer_id", "data", "id", "timestamp", "type"]
    assert (body["type"], bool(body["data"])) == ("deal.won", True)
    page.locator("[id='deal.won']").get_by_role("button").click()
    assert page.evaluate("navigator.clipboard.readText()") == shown.text_content()
    window.picture("catalogue-body", whole=False)
    window.link("Verify signatures")
    window.picture("catalogue-verify", whole=False)
    for language, source in examples().items():
        details = page.locator(
            "#verify details", has=page.locator("summary", has_text=re.compile(f"^{re.escape(language)}$"))
        )
        if details.get_attribute("open") is None:
            details.locator("summary").click()
        assert details.locator("pre").text_content() == source


def test_the_operator_sees_the_service_and_opens_a_portal(window: Window) -> None:
    page, path = window.page, f"/{window.customer_id}"
    window.site.receiver.answer(f"{path}/gone", status(410))
    window.site.receiver.answer(f"{path}/slow", status(200, delay_s=0.6))
    subscribe(window, f"{path}/gone")
    subscribe(window, f"{path}/slow")
    emit(window, count=3)
    window.see("/ops")
    page.get_by_label(window.say("API key")).fill(window.site.api.keys["ops"])
    page.keyboard.press("Enter")
    page.wait_for_url("**/ops")
    page.get_by_text("64 / 64").wait_for()
    assert page.locator("tr", has_text=window.customer_id).count() > 0
    window.picture("ops")
    page.get_by_label(window.say("Customer")).fill(window.customer_id)
    window.button("Make a link")
    window.picture("ops-link")
    page.goto(page.locator("pre").inner_text())
    page.wait_for_url("**/portal/")
    assert window.customer_id in (page.locator(".who").text_content() or "")


def test_the_reference_has_an_anchor_for_each_tag_and_operation(window: Window) -> None:
    for anchor in ("tag/deliveries", "operation/create_webhook", "tag/ecosystem"):
        window.see(f"/docs#{anchor}")
        expect(window.page.locator(f'[id="{anchor}"]')).to_be_in_viewport()
        window.picture(f"reference-{anchor.partition('/')[2]}", whole=False)
