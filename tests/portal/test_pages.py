"""The portal's pages over plain HTTP: what they show, what their forms do, and what they refuse."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from tests.support.answers import status
from tests.support.api import NOWHERE, Served
from tests.support.receiver import open_receiver
from tests.support.visitor import Visitor, open_visitor, text_of

PAYLOAD = "<img src=x onerror=alert(1)>\"'&"


async def test_every_page_carries_the_headers_that_keep_strangers_scripts_out(api: Served, acme: Visitor) -> None:
    made = await api.acme.subscribe()
    for path in (
        "/portal/",
        "/portal/endpoints",
        f"/portal/endpoints/{made['id']}",
        "/portal/nothing",
        "/portal/login",
    ):
        headers = (await acme.see(path)).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
        assert headers["referrer-policy"] == "same-origin"


async def test_no_page_has_script_or_style_of_its_own(api: Served, acme: Visitor) -> None:
    made = await api.acme.subscribe()
    one = f"/portal/endpoints/{made['id']}"
    for path in ("/portal/", "/portal/endpoints", one, f"{one}/edit", f"{one}/rotate", "/portal/deliveries",
                 "/portal/catalogue", "/portal/login"):  # fmt: skip
        text = (await acme.see(path)).text
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=|javascript:", text), path
        for source in re.findall(r'(?:src|href)="([^"#]+)"', text):
            assert source.startswith(("/portal", "?", "/docs")) or source == "/", source


async def test_n68_what_customers_and_emitters_write_is_shown_as_text(api: Served, acme: Visitor) -> None:
    made = await api.acme.subscribe(f"{NOWHERE}?q=%3Cb%3E", description=PAYLOAD, events=["deal.won"])
    emitted = await api.ops.post(
        "/events/emit", {"customer_id": "acme", "event_type": "deal.won", "payload": {PAYLOAD: PAYLOAD}}
    )
    assert emitted.status_code == 202
    for path in ("/portal/endpoints", f"/portal/endpoints/{made['id']}", f"/portal/endpoints/{made['id']}/edit"):
        page = await acme.see(path)
        assert "&lt;img src=x onerror=alert(1)&gt;" in page.text
        assert "<img src=x" not in page.text
    for field in ("event_id", "since", "cursor", "subscription_id", "event_type"):
        page = await acme.see("/portal/deliveries", **{field: PAYLOAD})
        assert page.status_code == 422
        assert "<img src=x" not in page.text


async def test_an_endpoint_is_added_and_its_secret_is_shown_this_once(api: Served, acme: Visitor) -> None:
    await acme.see("/portal/endpoints/new")
    page = await acme.send(
        "/portal/endpoints", endpoint_url=NOWHERE, description="CRM", which="some", events=["deal.won", "deal.lost"]
    )
    assert page.status_code == 201
    (secret,) = set(re.findall(r"whsec_[A-Za-z0-9+/]{44}", page.text))
    (made,) = (await api.acme.get("/webhooks")).json()["subscriptions"]
    assert (made["endpoint_url"], made["description"]) == (NOWHERE, "CRM")
    assert made["events"] == ["deal.won", "deal.lost"]
    for path in ("/portal/endpoints", f"/portal/endpoints/{made['id']}", f"/portal/endpoints/{made['id']}/edit"):
        assert secret not in (await acme.see(path)).text


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.com/x", "begin with https"),
        ("http://10.0.0.1/", "begin with https"),
        ("https://10.0.0.1/", "not reachable"),
        ("https://user:pass@example.com/", "not a URL"),
        ("", "begin with https"),
    ],
)
async def test_a_url_that_cannot_be_called_is_refused_beside_its_field(
    api: Served, acme: Visitor, url: str, words: str
) -> None:
    await acme.see("/portal/endpoints/new")
    page = await acme.send("/portal/endpoints", endpoint_url=url, description="kept", which="all")
    assert page.status_code in {400, 422}
    assert words in text_of(page)
    assert 'aria-invalid="true" aria-describedby' in page.text or 'aria-invalid="true"' in page.text
    assert 'value="kept"' in page.text
    assert (await api.acme.get("/webhooks")).json()["count"] == 0


async def test_unticking_the_last_type_does_not_subscribe_to_all(api: Served, acme: Visitor) -> None:
    made = await api.acme.subscribe(events=["deal.won"])
    await acme.see(f"/portal/endpoints/{made['id']}/edit")
    page = await acme.send(f"/portal/endpoints/{made['id']}/edit", endpoint_url=NOWHERE, which="some")
    assert page.status_code == 422
    assert "at least one" in text_of(page)
    assert (await api.acme.get(f"/webhooks/{made['id']}")).json()["events"] == ["deal.won"]


async def test_the_trace_context_is_asked_for_by_a_box_that_shows_what_is(api: Served, acme: Visitor) -> None:
    made = await api.acme.subscribe()
    path = f"/portal/endpoints/{made['id']}/edit"
    for ticked in (True, False):
        page = await acme.see(path)
        assert ('name="propagate_trace_context" value="true" checked' in page.text) is not ticked
        if ticked:
            await acme.send(path, endpoint_url=NOWHERE, which="all", propagate_trace_context="true")
        else:
            await acme.send(path, endpoint_url=NOWHERE, which="all")
        assert (await api.acme.get(f"/webhooks/{made['id']}")).json()["propagate_trace_context"] is ticked


async def test_an_endpoint_is_edited_paused_enabled_and_deleted(api: Served, acme: Visitor) -> None:
    made = await api.acme.subscribe(description="old")
    one = f"/portal/endpoints/{made['id']}"
    await acme.see(f"{one}/edit")
    page = await acme.send(
        f"{one}/edit", endpoint_url=f"{NOWHERE}/2", description="", which="some", events="lead.created"
    )
    assert page.url.path == one
    changed = (await api.acme.get(f"/webhooks/{made['id']}")).json()
    assert (changed["endpoint_url"], changed["description"], changed["events"]) == (
        f"{NOWHERE}/2", None, ["lead.created"],
    )  # fmt: skip
    assert "Paused" in text_of(await acme.send(f"{one}/switch", enabled="false"))
    assert (await api.acme.get(f"/webhooks/{made['id']}")).json()["disabled_reason"] == "requested"
    assert "Paused" not in text_of(await acme.send(f"{one}/switch", enabled="true"))
    assert (await acme.send(f"{one}/delete")).url.path == "/portal/endpoints"
    assert (await api.acme.get(f"/webhooks/{made['id']}")).status_code == 404
    assert (await acme.see(one)).status_code == 404


async def test_a_rotated_secret_is_shown_once_with_the_end_of_the_old_one(api: Served, acme: Visitor) -> None:
    made = await api.acme.subscribe()
    one = f"/portal/endpoints/{made['id']}"
    await acme.see(f"{one}/rotate")
    page = await acme.send(f"{one}/rotate", overlap_seconds="3600")
    (secret,) = set(re.findall(r"whsec_[A-Za-z0-9+/]{44}", page.text))
    assert secret != made["secret"]
    assert "carries both signatures" in text_of(page)
    assert "no longer valid" in text_of(await acme.send(f"{one}/rotate", overlap_seconds="0"))
    assert (await acme.send(f"{one}/rotate", overlap_seconds="-1")).status_code == 422


async def test_a_test_shows_the_answer_and_offers_to_enable_what_works(working_api: Served) -> None:
    async with open_receiver() as receiver, open_visitor(working_api, "acme") as visitor:
        receiver.answer("/hook", status(500, b"broken"), status(200))
        made = await working_api.acme.subscribe(receiver.url("/hook"))
        one = f"/portal/endpoints/{made['id']}"
        await visitor.see(one)
        await visitor.send(f"{one}/switch", enabled="false")
        piece = await visitor.send(f"{one}/test", headers={"HX-Request": "true"}, event_type="deal.won")
        assert "<html" not in piece.text
        assert "answered 500" in text_of(piece)
        assert "broken" in text_of(piece)
        assert "Enable it now" not in text_of(piece)
        whole = await visitor.send(f"{one}/test", event_type="deal.won")
        assert "<html" in whole.text
        assert "answered 200" in text_of(whole)
        assert "Enable it now" in text_of(whole)
        assert [one.headers["dealix-event-type"] for one in receiver.received] == ["deal.won", "deal.won"]
        unknown = await visitor.send(f"{one}/test", headers={"HX-Request": "true"}, event_type="no.such")
        assert "does not exist" in text_of(unknown)


async def test_an_attempt_shows_request_response_and_reason_and_is_sent_again(working_api: Served) -> None:
    async with open_receiver() as receiver, open_visitor(working_api, "acme") as visitor:
        receiver.answer("/hook", status(404, b"<b>no such page</b>", {"X-Mark": "seen"}), status(200))
        await working_api.acme.subscribe(receiver.url("/hook"))
        event = {"customer_id": "acme", "event_type": "deal.won", "payload": {"amount": 1.0, "who": PAYLOAD}}
        event_id = (await working_api.ops.post("/events/emit", event, wait_s=10)).json()["event_id"]
        rows = await visitor.see("/portal/deliveries", outcome="failed", event_id=event_id)
        (path,) = set(re.findall(r"/portal/deliveries/dlv_[0-9a-f]{24}", rows.text))
        page = await visitor.see(path)
        text = text_of(page)
        for words in ("404 Not Found", "X-Mark", "seen", "Dealix-Signature", '"amount": 1.0', "no such page", event_id):
            assert words in text, words
        assert "<b>no such" not in page.text
        assert "<img src=x" not in page.text
        again = await visitor.send(f"{path}/retry")
        assert "as attempt 2" in text_of(again)
        await receiver.wait_for(2, "/hook")
        assert receiver.received[0].body == receiver.received[1].body


async def test_a_retry_that_cannot_be_says_why(working_api: Served) -> None:
    async with open_receiver() as receiver, open_visitor(working_api, "acme") as visitor:
        receiver.answer("/hook", status(410))
        await working_api.acme.subscribe(receiver.url("/hook"))
        event = {"customer_id": "acme", "event_type": "deal.won"}
        await working_api.ops.post("/events/emit", event, wait_s=10)
        rows = await visitor.see("/portal/deliveries")
        (path,) = set(re.findall(r"/portal/deliveries/dlv_[0-9a-f]{24}", rows.text))
        await visitor.see(path)
        refused = await visitor.send(f"{path}/retry")
        assert refused.status_code == 409
        assert "Enable it first" in text_of(refused)


async def test_the_log_is_filtered_and_walked_page_by_page(working_api: Served) -> None:
    async with open_receiver() as receiver, open_visitor(working_api, "acme") as visitor:
        made = await working_api.acme.subscribe(receiver.url("/hook"))
        events = [{"customer_id": "acme", "event_type": kind} for kind in ("deal.won", "deal.lost") for _ in range(30)]
        await working_api.ops.post("/events/emit/batch", {"events": events})
        await receiver.wait_for(60)
        while (await working_api.acme.get("/deliveries", limit=100)).json()["count"] < 60:
            pass
        first = await visitor.see("/portal/deliveries")
        assert len(set(re.findall(r'data-id="(dlv_\w+)"', first.text))) == 50
        (older,) = re.findall(r'href="(/portal/deliveries\?[^"]*cursor=[^"]*)"', first.text)
        second = await visitor.see(older.replace("&amp;", "&"))
        assert len(set(re.findall(r'data-id="(dlv_\w+)"', second.text))) == 10
        assert "data-live" not in second.text
        chosen = await visitor.see("/portal/deliveries", event_type="deal.lost", subscription_id=made["id"],
                                   since="2026-01-01T00:00", until="2099-01-01T00:00", outcome="success")  # fmt: skip
        assert len(set(re.findall(r'data-id="(dlv_\w+)"', chosen.text))) == 30
        assert "No delivery fits" in text_of(await visitor.see("/portal/deliveries", outcome="failed"))


async def test_live_rows_come_only_when_there_are_new_ones(working_api: Served) -> None:
    async with open_receiver() as receiver, open_visitor(working_api, "acme") as visitor:
        await working_api.acme.subscribe(receiver.url("/hook"))
        event = {"customer_id": "acme", "event_type": "deal.won"}
        await working_api.ops.post("/events/emit", event, wait_s=10)
        rows = await visitor.see("/portal/deliveries/rows", seen="")
        (seen,) = re.findall(r'data-id="(dlv_\w+)"', rows.text)
        assert (await visitor.see("/portal/deliveries/rows", seen=seen)).status_code == 204
        await working_api.ops.post("/events/emit", event, wait_s=10)
        assert len(re.findall(r"<tr ", (await visitor.see("/portal/deliveries/rows", seen=seen)).text)) == 2


async def test_the_overview_draws_what_the_statistics_have(api: Served, acme: Visitor) -> None:
    await api.run(
        "INSERT INTO dealix.hourly_stats "
        "VALUES ('acme', date_trunc('hour', now()), 90, 10, '{0,0,0,100,0,0,0,0,0,0,0,0}')"
    )
    await api.run(
        "INSERT INTO dealix.daily_stats "
        "VALUES (current_date, 'acme', 'deal.won', 7, 3, 9, '{0,10,0,0,0,0,0,0,0,0,0,0}')"
    )
    day = await acme.see("/portal/")
    assert "100 Success rate 90.0 %" in text_of(day)
    chart = json.loads(re.findall(r'data-chart="([^"]*)"', day.text)[0].replace("&#34;", '"'))
    assert (len(chart["times"]), chart["success"][-1], chart["failed"][-1], chart["rate"][-1]) == (24, 90, 10, 90.0)
    month = text_of(await acme.see("/portal/", period="30d"))
    assert "10 Success rate 70.0 %" in month
    assert "100 Success rate" in text_of(await acme.see("/portal/", period="7d"))
    assert (await acme.see("/portal/", period="<script>")).status_code == 200


async def test_the_catalogue_has_every_type_with_an_example_and_the_way_to_verify(api: Served, acme: Visitor) -> None:
    text = text_of(await acme.see("/portal/catalogue"))
    for known in (await api.client.get("/api/v1/ecosystem/event-types")).json()["events"]:
        assert f'"type": "{known["type"]}"' in text
    assert "hmac.compare_digest" in text


async def test_failures_are_pages_with_a_way_back(api: Served, acme: Visitor) -> None:
    missing = await acme.see("/portal/nothing")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "Back to the first page" in text_of(missing)
    assert (await acme.client.put("/portal/")).status_code == 405
    await api.run("ALTER TABLE dealix.event_types RENAME TO elsewhere")
    broken = await acme.see("/portal/catalogue")
    assert broken.status_code == 500
    for leak in ("event_types", "SELECT", "Traceback", "psycopg"):
        assert leak not in broken.text
    piece = await acme.client.get("/portal/deliveries", headers={"HX-Request": "true"})
    assert "<html" not in piece.text


async def test_another_customers_objects_are_not_there(api: Served) -> None:
    made = await api.acme.subscribe()
    async with open_visitor(api, "globex") as globex:
        await globex.see("/portal/endpoints/new")
        one = f"/portal/endpoints/{made['id']}"
        for path in (one, f"{one}/edit", f"{one}/rotate", f"{one}/delete"):
            assert (await globex.see(path)).status_code == 404
        for form in ("edit", "switch", "rotate", "delete", "test"):
            sent = await globex.send(f"{one}/{form}", endpoint_url=NOWHERE, enabled="false", which="all")
            assert sent.status_code == 404, form
        assert (await globex.see("/portal/deliveries", subscription_id=made["id"])).text.count("<tr data-id") == 0
    assert (await api.acme.get(f"/webhooks/{made['id']}")).json()["enabled"] is True


async def test_strangers_are_sent_to_sign_in(api: Served) -> None:
    async with httpx.AsyncClient(base_url=api.url, trust_env=False) as client:
        for path in ("/portal/", "/portal/endpoints", "/portal/deliveries/rows", "/portal/catalogue"):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, "/portal/login")
        piece = await client.get("/portal/deliveries/rows", headers={"HX-Request": "true"})
        assert (piece.status_code, piece.headers["hx-redirect"]) == (401, "/portal/login")


async def test_assets_are_compressed_and_kept_for_ever_and_the_first_load_is_small(api: Served, acme: Visitor) -> None:
    page = await acme.see("/portal/")
    urls = set(re.findall(r'(?:src|href)="(/portal/assets/[^"]+)"', page.text))
    assert len(urls) == 7
    loaded = len(page.content)
    for url in urls:
        async with acme.client.stream("GET", url, headers={"Accept-Encoding": "gzip"}) as answer:
            loaded += sum([len(chunk) async for chunk in answer.aiter_raw()])
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert answer.headers["content-encoding"] == "gzip"
            assert answer.headers["x-content-type-options"] == "nosniff"
    assert loaded < 150 * 1024
    one = next(url for url in urls if url.endswith("portal.js"))
    plain = await acme.client.get(one, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    for other in (one.replace("portal.js", "nothing.js"), one.replace("portal.js", "vendor/htmx.LICENSE"),
                  one.replace("portal.js", "..%2f__init__.py"), "/portal/assets/0/portal.js"):  # fmt: skip
        assert (await acme.client.get(other)).status_code == 404
