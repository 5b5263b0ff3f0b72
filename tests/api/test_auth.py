"""Who may ask: keys, and what they may act for."""

from __future__ import annotations

import httpx
import pytest

from api.auth import Caller, unauthorized
from daemon.ids import CustomerId
from tests.support.api import BASE, NOWHERE, Served

MARK = "canary-7f3a"


async def ask(served: Served, headers: list[tuple[str, str]], path: str = "/webhooks") -> httpx.Response:
    return await served.client.get(BASE + path, headers=headers)


@pytest.mark.threat("N81-N82")
async def test_without_one_valid_key_every_cause_gets_the_same_401(api: Served) -> None:
    key = api.keys["acme"]
    await api.run("UPDATE dealix.api_keys SET revoked_at = now() WHERE customer_id = 'globex'")
    expired = api.keys["ops"]
    await api.run("UPDATE dealix.api_keys SET expires_at = now() WHERE customer_id IS NULL")
    refused: list[list[tuple[str, str]]] = [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer \t x")],
        [("Authorization", key)],
        [("Authorization", f"Basic {key}")],
        [("Authorization", f"Bearer {key[:-1]}")],
        [("Authorization", f"Bearer {key}x")],
        [("Authorization", f"Bearer  {key}")],
        [("Authorization", f"Bearer {key.swapcase()}")],
        [("Authorization", f"Bearer {api.keys['globex']}")],
        [("Authorization", f"Bearer {expired}")],
        [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")],
        [("Authorization", f"Bearer {key}"), ("authorization", "Basic x")],
        [("Authorization", "Bearer dlx_" + "A" * 43)],
        [("Authorization", "Bearer " + "A" * 10_000)],
        [("Authorization", "Bearer ' OR 1=1 --")],
        [("X-Api-Key", key)],
        [("Cookie", f"Authorization={key}")],
    ]
    for headers in refused:
        answer = await ask(api, headers)
        assert answer.status_code == 401, headers
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.content == unauthorized().body(), headers
    assert (await ask(api, [("Authorization", f"Bearer {key}")])).status_code == 200
    assert (await ask(api, [("Authorization", f"bearer {key}")])).status_code == 200  # RFC 9110, section 11.1


@pytest.mark.threat("N82")
async def test_a_key_that_is_not_ascii_is_401(api: Served) -> None:
    for token in ("é", "dlx_é", "\xff", "\uff21", "dlx_" + "\u00b2" * 43):
        for encoded in (token.encode(), token.encode("latin-1", "replace")):
            answer = await api.client.get(f"{BASE}/webhooks", headers=[(b"Authorization", b"Bearer " + encoded)])
            assert answer.status_code == 401, encoded


@pytest.mark.threat("N81")
async def test_a_key_in_the_query_is_no_key(api: Served) -> None:
    assert (await ask(api, [], f"/webhooks?api_key={api.keys['acme']}")).status_code == 401


@pytest.mark.threat("N82", "N88")
async def test_a_key_that_is_revoked_does_not_get_another_request_in(api: Served) -> None:
    assert (await api.acme.get("/webhooks")).status_code == 200
    await api.run("UPDATE dealix.api_keys SET revoked_at = now() WHERE customer_id = 'acme'")
    assert (await api.acme.get("/webhooks")).status_code == 401


@pytest.mark.threat("N86")
async def test_a_customer_key_acts_for_its_customer_and_no_other(api: Served) -> None:
    own = await api.acme.get("/webhooks")
    named = await api.acme.get("/webhooks", customer_id="acme")
    foreign = await api.acme.get("/webhooks", customer_id="globex")
    assert own.json()["customer_id"] == named.json()["customer_id"] == "acme"
    assert (foreign.status_code, foreign.json()["code"]) == (403, "wrong_customer")


async def test_an_ops_key_has_to_name_the_customer_where_one_is_needed(api: Served) -> None:
    for path in ("/webhooks", "/deliveries", "/stats", "/events/evt_x"):
        answer = await api.ops.get(path)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "customer_id"), path
        assert (await api.ops.get(path, customer_id="acme")).status_code in {200, 404}


@pytest.mark.threat("N87")
async def test_a_route_for_ops_refuses_a_customer_whatever_else_is_wrong(api: Served) -> None:
    for path in ("/events/emit", "/events/emit/batch"):
        for body in (b"{", b"", b'{"customer_id": "acme", "event_type": "deal.won"}'):
            answer = await api.acme.send("POST", path, body)
            assert (answer.status_code, answer.json()["code"]) == (403, "ops_only")


async def test_routes_for_all_need_no_key_and_take_a_bad_one(api: Served) -> None:
    for url in (f"{BASE}/event-types", "/healthz", "/openapi.json"):
        for headers in ({}, {"Authorization": "Bearer nonsense"}):
            assert (await api.client.get(url, headers=headers)).status_code == 200


@pytest.mark.threat("N95")
async def test_neither_key_nor_body_nor_query_gets_into_the_log(
    api: Served, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    await api.acme.subscribe(f"{NOWHERE}/{MARK}", description=MARK)
    await api.ops.post("/events/emit", {"customer_id": "acme", "event_type": "deal.won", "payload": {"a": MARK}})
    await api.acme.get("/webhooks", cursor=MARK)
    await api.acme.send("POST", "/webhooks", f'{{"{MARK}'.encode())
    captured = capfd.readouterr()
    said = captured.out + captured.err + caplog.text
    assert said.count("request.answered") == 4
    assert MARK not in said
    assert all(key not in said for key in api.keys.values())
    assert "route=/api/v1/ecosystem/webhooks" in said


def test_the_holder_of_an_ops_key_owns_every_object() -> None:
    Caller("key_1", None).check_owner(CustomerId("acme"), "webhook")


@pytest.mark.threat("N92")
async def test_a_page_of_another_origin_gets_no_leave_from_us(api: Served) -> None:
    asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for path in ("/webhooks", "/events/emit", "/event-types"):
        answers = [
            await api.client.options(BASE + path, headers=asks),
            await api.client.get(BASE + path, headers=asks | api.acme.headers),
        ]
        assert answers[0].status_code == 405
        for answer in answers:
            assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
            assert "set-cookie" not in answer.headers
