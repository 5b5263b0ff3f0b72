"""Coming in and going out, and whoever tries to come in by another way."""

from __future__ import annotations

import httpx
import pytest

from daemon.store import api_keys
from tests.support.api import Served, open_api
from tests.support.visitor import Visitor, open_visitor, text_of


async def link_to(api: Served, customer_id: str = "acme") -> tuple[str, str]:
    """The id and the path of a new link."""
    made = await api.ops.post("/portal-links", {"customer_id": customer_id})
    assert made.status_code == 201, made.text
    return made.json()["id"], made.json()["url"].removeprefix(api.url)


async def test_a_link_lets_in_to_one_customers_portal_and_is_no_longer_in_the_address(api: Served) -> None:
    await api.globex.subscribe(description="only-globex")
    await api.acme.subscribe(description="only-acme")
    link_id, path = await link_to(api)
    assert link_id.startswith("plk_")
    async with open_visitor(api) as visitor:
        page = await visitor.see(path)
        assert page.url.path == "/portal/"
        listed = text_of(await visitor.see("/portal/endpoints"))
        assert "only-acme" in listed
        assert "only-globex" not in listed


async def test_a_link_works_for_an_hour_and_its_sessions_no_longer(api: Served) -> None:
    _, path = await link_to(api)
    assert await api.rows(
        "SELECT expires_at - created_at BETWEEN interval '59 min' AND interval '61 min' FROM dealix.portal_links"
    ) == [(True,)]
    async with open_visitor(api) as visitor:
        await visitor.see(path)
        await api.run("UPDATE dealix.portal_links SET expires_at = now() - interval '1 s'")
        assert (await visitor.see("/portal/endpoints")).url.path == "/portal/login"
        again = await visitor.see(path)
        assert again.status_code == 403
        assert "no longer good" in text_of(again)


async def test_a_revoked_link_lets_nobody_in_and_puts_out_who_came_in_by_it(api: Served) -> None:
    link_id, path = await link_to(api)
    async with open_visitor(api) as inside, open_visitor(api) as outside:
        await inside.see(path)
        assert (await api.ops.delete(f"/portal-links/{link_id}")).json() == {"id": link_id, "revoked": True}
        assert (await inside.see("/portal/")).url.path == "/portal/login"
        assert (await outside.see(path)).status_code == 403
    for unknown in ("plk_" + "0" * 24, "nothing", "plk_%00"):
        assert (await api.ops.delete(f"/portal-links/{unknown}")).status_code == 404


async def test_links_are_made_by_ops_alone_for_customers_that_can_exist(api: Served) -> None:
    assert (await api.acme.post("/portal-links", {"customer_id": "acme"})).status_code == 403
    for bad in ({}, {"customer_id": "a b"}, {"customer_id": ""}, {"customer_id": "acme", "hours": 9}):
        assert (await api.ops.post("/portal-links", bad)).status_code == 422


async def test_neither_a_links_token_nor_a_cookie_is_stored(api: Served) -> None:
    _, path = await link_to(api)
    async with open_visitor(api) as visitor:
        await visitor.see(path)
        cookie = visitor.client.cookies["dealix_portal"]
        rows = str(await api.rows("SELECT l::text, s::text FROM dealix.portal_links l, dealix.portal_sessions s"))
        for token in (path.rpartition("/")[2], cookie):
            assert len(token) == 43
            assert token not in rows


async def test_a_customers_key_lets_in_until_it_is_revoked(api: Served, acme: Visitor) -> None:
    assert "acme" in text_of(await acme.see("/portal/"))
    async with api.pool.connection(10) as conn:
        (key,) = [key for key in await api_keys.all_keys(conn) if key.customer_id == "acme"]
        await api_keys.revoke(conn, key.id)
    assert (await acme.see("/portal/")).url.path == "/portal/login"


@pytest.mark.parametrize("key", ["", "dlx_nothing", "ops", "é\x00", "x" * 100_000])
async def test_no_other_key_lets_in(api: Served, key: str) -> None:
    async with open_visitor(api) as visitor:
        refused = await visitor.send("/portal/login", key=api.keys["ops"] if key == "ops" else key)
        assert refused.status_code == 403
        assert "dealix_portal" not in visitor.client.cookies
        assert (await visitor.see("/portal/")).url.path == "/portal/login"


async def test_signing_out_ends_the_session_itself(api: Served, acme: Visitor) -> None:
    await acme.see("/portal/")
    cookie = acme.client.cookies["dealix_portal"]
    out = await acme.send("/portal/leave")
    assert out.url.path == "/portal/login"
    async with httpx.AsyncClient(base_url=api.url, cookies={"dealix_portal": cookie}, trust_env=False) as thief:
        assert (await thief.get("/portal/")).status_code == 303


async def test_the_cookie_is_for_pages_alone(api: Served) -> None:
    async with open_visitor(api) as visitor:
        entered = await visitor.client.post(
            "/portal/login", data={"key": api.keys["acme"]}, headers={"Origin": api.url}, follow_redirects=False
        )
        cookie = entered.headers["set-cookie"]
        assert {"HttpOnly", "Path=/portal", "SameSite=Lax"} <= set(cookie.split("; "))
        assert "Secure" not in cookie


async def test_links_begin_with_the_public_address_and_with_https_cookies_are_for_it_alone(
    migrated_database: str,
) -> None:
    public = "https://hooks.example.com"
    async with open_api(migrated_database, api={"public_url": public}) as proxied, open_visitor(proxied) as visitor:
        made = await proxied.ops.post("/portal-links", {"customer_id": "acme"})
        assert made.json()["url"].startswith(f"{public}/portal/enter/")
        entered = await visitor.client.post(
            "/portal/login", data={"key": proxied.keys["acme"]}, headers={"Origin": public}, follow_redirects=False
        )
        assert entered.status_code == 303
        assert "Secure" in entered.headers["set-cookie"].split("; ")


FORMS = ("switch", "rotate", "delete", "test", "edit")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://[::1"},
        {"Origin": "http://evil.example@127.0.0.1"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    ],
)
async def test_n92_a_form_of_another_site_changes_nothing(api: Served, acme: Visitor, headers: dict[str, str]) -> None:
    made = await api.acme.subscribe()
    await acme.see(f"/portal/endpoints/{made['id']}")
    for form in FORMS:
        refused = await acme.send(f"/portal/endpoints/{made['id']}/{form}", headers=headers, enabled="false")
        assert refused.status_code == 403, form
        assert "did not come from this site" in text_of(refused)
    assert (await api.acme.get(f"/webhooks/{made['id']}")).json()["enabled"] is True


async def test_a_form_needs_the_sessions_own_token(api: Served, acme: Visitor) -> None:
    made = await api.acme.subscribe()
    async with open_visitor(api, "globex") as other:
        await other.see("/portal/endpoints/new")
        for token in ("", "0" * 64, "é", other.csrf):
            acme.csrf = token
            for form in FORMS:
                refused = await acme.send(f"/portal/endpoints/{made['id']}/{form}", enabled="false")
                assert refused.status_code == 403, (token, form)
    assert (await api.acme.get(f"/webhooks/{made['id']}")).json()["enabled"] is True


async def test_without_any_word_of_its_origin_a_form_is_not_taken(api: Served) -> None:
    async with httpx.AsyncClient(base_url=api.url, trust_env=False) as client:
        fields = {"key": api.keys["acme"]}
        assert (await client.post("/portal/login", data=fields)).status_code == 403
        site = {"Sec-Fetch-Site": "cross-site"}
        assert (await client.post("/portal/login", data=fields, headers=site)).status_code == 403
        site = {"Sec-Fetch-Site": "same-origin"}
        assert (await client.post("/portal/login", data=fields, headers=site)).status_code == 303


async def test_choosing_a_language_leads_back_to_the_same_page_and_to_no_other_site(api: Served, acme: Visitor) -> None:
    page = await acme.send("/portal/preferences", language="ar", back="/portal/deliveries?outcome=failed")
    assert (page.url.path, page.url.query) == ("/portal/deliveries", b"outcome=failed")
    assert 'lang="ar" dir="rtl"' in page.text
    for back in ("https://evil.example/", "//evil.example", "/\\evil.example", "", "/\r\nX: y", "javascript:alert(1)"):
        answer = await acme.client.post(
            "/portal/preferences",
            data={"theme": "dark", "back": back},
            headers={"Origin": api.url},
            follow_redirects=False,
        )
        assert answer.headers["location"] == "/portal/"
    assert 'data-theme="dark"' in (await acme.see("/portal/")).text
    await acme.send("/portal/preferences", theme="<script>", language="xx")
    assert 'data-theme="dark"' in (await acme.see("/portal/")).text


async def test_browsers_that_ask_for_arabic_get_it(api: Served) -> None:
    async with open_visitor(api) as visitor:
        visitor.client.headers["Accept-Language"] = "ar-SA,ar;q=0.9,en;q=0.5"
        assert 'lang="ar" dir="rtl"' in (await visitor.see("/portal/login")).text
        visitor.client.headers["Accept-Language"] = "de"
        assert 'lang="en" dir="ltr"' in (await visitor.see("/portal/login")).text


async def test_whoever_guesses_is_slowed_down(api: Served) -> None:
    async with open_visitor(api) as visitor:
        answers = [(await visitor.send("/portal/login", key=f"dlx_{i}")).status_code for i in range(100)]
        assert answers[0] == 403
        assert answers[-1] == 429
        refused = await visitor.see("/portal/enter/nothing")
        assert refused.status_code == 429
        assert "Too many attempts" in text_of(refused)
        assert (await visitor.send("/portal/login", key=api.keys["acme"])).status_code in {200, 429}
