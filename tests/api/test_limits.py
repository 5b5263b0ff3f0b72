"""What may be done only so often: guessing keys, and test-fires."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from api.client_address import Network, client_address
from api.limits import (
    FAILURES_OF_ALL,
    FAILURES_OF_ONE,
    KNOWN_KEYS,
    TEST_FIRES,
    Buckets,
    KeyGuessing,
)
from config.settings import Api
from tests.support.answers import status
from tests.support.api import BASE, Served, open_api
from tests.support.receiver import open_receiver

LIMIT_S = 45
WRONG = {"Authorization": "Bearer dlx_" + "w" * 43}


def networks(*texts: str) -> tuple[Network, ...]:
    return Api.model_validate({"trusted_proxies": list(texts)}).trusted_proxies


async def guess(served: Served, **headers: str) -> httpx.Response:
    return await served.client.get(f"{BASE}/webhooks", headers=WRONG | headers)


async def use_up(served: Served, count: int = FAILURES_OF_ONE) -> None:
    for _ in range(count):
        assert (await guess(served)).status_code == 401


@pytest.fixture
async def proxied_api(migrated_database: str) -> AsyncGenerator[Served]:
    """The API behind a proxy on this machine that it trusts."""
    with trio.fail_after(LIMIT_S):
        async with open_api(migrated_database, api={"trusted_proxies": ["127.0.0.1/32"]}) as served:
            yield served


# ── the buckets ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    burst=st.integers(1, 50),
    per_s=st.floats(0.1, 100),
    pauses_s=st.lists(st.floats(0, 3), min_size=1, max_size=200),
)
def test_no_more_is_let_through_than_the_burst_and_the_rate_allow(
    burst: int, per_s: float, pauses_s: list[float]
) -> None:
    now = [1000.0]
    buckets = Buckets(burst=burst, per_s=per_s, size=10, clock=lambda: now[0])
    taken = 0
    for pause_s in pauses_s:
        now[0] += pause_s
        if buckets.wait_s("a") == 0:
            buckets.take("a")
            taken += 1
        assert taken <= burst + (now[0] - 1000) * per_s + 1e-6


def test_a_bucket_tells_exactly_how_long_to_wait_and_is_full_again_after_a_while() -> None:
    now = [0.0]
    buckets = Buckets(burst=3, per_s=0.5, size=10, clock=lambda: now[0])
    for _ in range(3):
        assert buckets.wait_s("a") == 0
        buckets.take("a")
    assert buckets.wait_s("a") == 2
    assert buckets.wait_s("b") == 0
    now[0] = 2.0
    assert buckets.wait_s("a") == 0
    buckets.take("a")
    assert buckets.wait_s("a") == 2
    buckets.put_back("a")
    assert buckets.wait_s("a") == 0
    now[0] = 100.0
    for _ in range(3):
        assert buckets.wait_s("a") == 0
        buckets.take("a")
    assert buckets.wait_s("a") > 0


def test_however_many_addresses_fail_no_more_than_so_many_are_kept() -> None:
    buckets = Buckets(burst=3, per_s=1, size=100, clock=lambda: 0.0)
    for n in range(10_000):
        buckets.take(n)
        buckets.take("busy")
    assert len(buckets) == 100
    assert buckets.wait_s("busy") > 0  # whoever goes on is not the one that is forgotten


async def test_however_many_keys_were_good_no_more_than_so_many_are_known() -> None:
    guessing = KeyGuessing()
    for n in range(KNOWN_KEYS + 100):
        digest = n.to_bytes(32)
        guessing.begin("a", digest)
        guessing.good("a", digest)
    assert len(guessing._known) == KNOWN_KEYS


# ── whose address it is ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["203.0.113.9"], "192.0.2.1"),  # no proxy of ours: its word counts for nothing
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),  # the first is what the client itself claimed
        ("127.0.0.1", ["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["203.0.113.9, 10.0.0.7"], "203.0.113.9"),
        ("127.0.0.1", ["10.0.0.8, 10.0.0.7"], "10.0.0.8"),
        ("127.0.0.1", ["nonsense"], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.9, unknown, 10.0.0.7"], "10.0.0.7"),
        ("127.0.0.1", ["", ","], "127.0.0.1"),
        ("127.0.0.1", ["::ffff:203.0.113.9"], "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::"),
        ("::ffff:127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        (None, ["203.0.113.9"], ""),
    ],
)
def test_n93_a_forwarded_address_counts_only_as_far_as_trusted_proxies_wrote_it(
    peer: str | None, forwarded: list[str], found: str
) -> None:
    headers = Headers([("X-Forwarded-For", line) for line in forwarded])
    assert client_address(peer, headers, networks("127.0.0.0/8", "10.0.0.0/8")) == found


def test_n93_without_trusted_proxies_the_header_is_not_read() -> None:
    assert client_address("127.0.0.1", Headers({"X-Forwarded-For": "203.0.113.9"}), ()) == "127.0.0.1"


# ── guessing keys ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_n91_whoever_keeps_failing_is_told_to_wait_and_not_looked_up_any_more(api: Served) -> None:
    with trio.fail_after(LIMIT_S):
        await use_up(api)
        async with api.pool.connection(20) as conn, conn.transaction():
            await conn.execute("LOCK TABLE dealix.api_keys IN ACCESS EXCLUSIVE MODE")  # a look-up would get no answer
            answer = await guess(api)
        assert (answer.status_code, answer.headers["Content-Type"]) == (429, "application/problem+json")
        assert 1 <= int(answer.headers["Retry-After"]) <= 2
        assert answer.json()["code"] == "rate_limited"
        assert (await api.client.get(f"{BASE}/webhooks")).status_code == 429  # no key at all is a failure too
        await trio.sleep(int(answer.headers["Retry-After"]))
        assert (await guess(api)).status_code == 401


async def test_n91_a_key_in_use_goes_on_where_somebody_at_its_address_keeps_failing(api: Served) -> None:
    with trio.fail_after(LIMIT_S):
        assert (await api.acme.get("/webhooks")).status_code == 200
        await use_up(api)
        assert (await guess(api)).status_code == 429
        for _ in range(3):
            assert (await api.acme.get("/webhooks")).status_code == 200
        assert (await api.globex.get("/webhooks")).status_code == 429  # not seen before: it waits with the others


async def test_n91_a_key_that_is_revoked_counts_like_any_wrong_one_from_then_on(api: Served) -> None:
    with trio.fail_after(LIMIT_S):
        assert (await api.acme.get("/webhooks")).status_code == 200
        await api.run("UPDATE dealix.api_keys SET revoked_at = now() WHERE customer_id = 'acme'")
        statuses = [(await api.acme.get("/webhooks")).status_code for _ in range(FAILURES_OF_ONE + 1)]
        assert statuses == [401] * FAILURES_OF_ONE + [429]


async def test_n89_whatever_is_shown_as_a_key_is_looked_up_alike_however_it_begins(api: Served) -> None:
    shown = ["x", "dlx_", "dlx_" + "w" * 43, "DLX_" + "w" * 43, "w" * 47, "dlx_" + "w" * 4000, api.keys["acme"]]
    statuses: dict[str, int] = {}

    async def one(key: str) -> None:
        statuses[key] = (await api.with_header(f"Bearer {key}").get("/webhooks")).status_code

    with trio.fail_after(LIMIT_S):
        async with api.pool.connection(20) as conn, conn.transaction():
            await conn.execute("LOCK TABLE dealix.api_keys IN ACCESS EXCLUSIVE MODE")
            async with trio.open_nursery() as nursery:
                for key in shown:
                    nursery.start_soon(one, key)
            assert (await api.client.get(f"{BASE}/webhooks")).status_code == 401  # what shows nothing costs nothing
        assert statuses == dict.fromkeys(shown, 503)  # all of them waited for the same look-up


async def test_good_keys_are_never_limited(api: Served) -> None:
    with trio.fail_after(LIMIT_S):
        for _ in range(FAILURES_OF_ONE * 2):
            assert (await api.acme.get("/event-types")).status_code == 200
            assert (await api.acme.get("/stats")).status_code == 200


async def test_n91_a_thousand_guesses_at_once_are_not_let_in_together(api: Served) -> None:
    statuses: list[int] = []

    async def one() -> None:
        statuses.append((await guess(api)).status_code)

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for _ in range(FAILURES_OF_ONE * 3):
                nursery.start_soon(one)
        assert set(statuses) == {401, 429}
        assert statuses.count(401) <= FAILURES_OF_ONE + LIMIT_S


async def test_n91_the_addresses_are_counted_apart_and_all_of_them_together(proxied_api: Served) -> None:
    with trio.fail_after(LIMIT_S):
        for _ in range(FAILURES_OF_ONE):
            assert (await guess(proxied_api, **{"X-Forwarded-For": "203.0.113.1"})).status_code == 401
        assert (await guess(proxied_api, **{"X-Forwarded-For": "203.0.113.1"})).status_code == 429
        refused = 0
        for n in range(FAILURES_OF_ALL * 2):
            address = f"198.51.{n // 250}.{n % 250}"
            if (await guess(proxied_api, **{"X-Forwarded-For": address})).status_code == 429:
                refused += 1
                break
        assert refused == 1


async def test_a_database_that_is_away_uses_nobodys_tries_up(api: Served) -> None:
    with trio.fail_after(LIMIT_S):
        async with api.pool.connection(20) as conn, conn.transaction():
            await conn.execute("LOCK TABLE dealix.api_keys IN ACCESS EXCLUSIVE MODE")
            async with trio.open_nursery() as nursery:
                for _ in range(FAILURES_OF_ONE // 2):
                    nursery.start_soon(guess, api)
        await use_up(api, FAILURES_OF_ONE)


# ── test-fires ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_customers_test_fires_are_limited_and_nobody_elses_with_them(working_api: Served) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_receiver() as receiver:
            receiver.answer_all(status(200))
            made = await working_api.acme.subscribe(receiver.url())
            other = await working_api.globex.subscribe(receiver.url())
            for _ in range(TEST_FIRES):
                assert (await working_api.acme.post(f"/webhooks/{made['id']}/test")).status_code == 200
            answer = await working_api.acme.post(f"/webhooks/{made['id']}/test")
            if answer.status_code == 200:  # 30 tests took longer than 2 s
                answer = await working_api.acme.post(f"/webhooks/{made['id']}/test")
            assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
            assert 1 <= int(answer.headers["Retry-After"]) <= 2
            assert (await working_api.globex.post(f"/webhooks/{other['id']}/test")).status_code == 200
