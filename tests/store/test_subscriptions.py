"""Subscriptions: what a customer makes, sees, changes and deletes, and what several sessions do to one at once."""

from __future__ import annotations

import base64
import re
from typing import Final

import pytest
import stripe
import trio
from standardwebhooks import Webhook

from daemon.errors import ImportConflict, SealBroken, SubscriptionLimit
from daemon.ids import CustomerId, SubscriptionId
from daemon.sealing import KeyRing
from daemon.store import sealed as seals
from daemon.store import subscriptions
from daemon.store.connection import Connection, connect
from daemon.store.subscription_import import import_one
from daemon.store.subscriptions import NewRow, Subscription

LIMIT_S: Final = 15.0
ACME: Final = CustomerId("acme")
KEY: Final = bytes.fromhex("8f1c0c5be33b7e7f4d0d96c1a5c2c9b0a77ce5b2f9de10338a5bb6e4417d02f6")
RING: Final = KeyRing(KEY)


async def make(conn: Connection, customer: CustomerId = ACME, events: tuple[str, ...] = ()) -> tuple[Subscription, str]:
    return await subscriptions.create(
        conn,
        ring=RING,
        customer_id=customer,
        endpoint_url="https://example.com/hook",
        events=events,
        description="the first",
    )


async def sealed(conn: Connection, subscription_id: SubscriptionId) -> tuple[bytes, bytes | None]:
    cursor = await conn.execute(
        "SELECT secret_sealed, previous_secret_sealed FROM dealix.subscriptions WHERE id = %(id)s",
        {"id": subscription_id},
    )
    (row,) = await cursor.fetchall()
    return row


async def test_a_new_subscription_is_enabled_healthy_and_has_the_secret_that_was_shown(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        made, secret = await make(conn, events=("deal.won",))
        assert re.fullmatch(r"whk_[0-9a-f]{24}", made.id)
        assert made.events == ["deal.won"]
        assert (made.enabled, made.disabled_reason, made.consecutive_failures, made.circuit) == (
            True,
            None,
            0,
            "closed",
        )
        assert (made.last_delivery_at, made.last_status_code) == (None, None)
        assert await subscriptions.get(conn, made.id) == made
        stored, previous = await sealed(conn, made.id)
        assert subscriptions.open_secret(RING, made.id, stored) == secret
        assert secret.encode() not in stored
        assert previous is None


def test_a_secret_serves_the_official_verifiers_of_both_schemes() -> None:
    secret = subscriptions.new_secret()
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{44}", secret)
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 33
    assert Webhook(secret)
    assert stripe.WebhookSignature
    assert subscriptions.fit_for_standard_webhooks(secret)


@pytest.mark.parametrize(
    "secret", ["whsec_ab-d", "whsec_ab_d", "whsec_abc", "whsec_", "whsec_not base64!", "whsec_YWJj\n"]
)
def test_what_is_not_standard_base64_is_unfit_for_standard_webhooks(secret: str) -> None:
    assert not subscriptions.fit_for_standard_webhooks(secret)


async def test_of_many_creates_at_once_exactly_one_hundred_succeed(migrated_database: str, conn: Connection) -> None:
    refused: list[SubscriptionLimit] = []

    async def create_some() -> None:
        async with await connect(migrated_database, timeout_s=5, application_name="test") as own:
            for _ in range(15):
                try:
                    await make(own)
                except SubscriptionLimit as e:
                    refused.append(e)

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(create_some)
        assert await subscriptions.count(conn, ACME) == 100
        assert len(refused) == 20
        await make(conn, CustomerId("another"))


async def test_pages_are_newest_first_leave_nothing_out_and_keep_customers_apart(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        made = [(await make(conn))[0] for _ in range(5)]
        await make(conn, CustomerId("acm"))
        # Equal times: only the id is left to tell them apart.
        await conn.execute(
            "UPDATE dealix.subscriptions SET created_at = '2026-01-01T00:00:00Z' WHERE customer_id = 'acme'"
        )
        await subscriptions.update(conn, made[2].id, {"enabled": False})
        seen: list[SubscriptionId] = []
        before = None
        while rows := await subscriptions.page(conn, ACME, enabled_only=False, limit=2, before=before):
            seen += [row.id for row in rows]
            before = (rows[-1].created_at, rows[-1].id)
        assert seen == sorted((row.id for row in made), reverse=True)
        enabled = await subscriptions.page(conn, ACME, enabled_only=True, limit=100, before=None)
        assert {row.id for row in enabled} == {row.id for row in made} - {made[2].id}


async def test_a_change_leaves_alone_what_it_does_not_name_and_raises_the_version(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        made, _ = await make(conn, events=("deal.won",))
        changed = await subscriptions.update(conn, made.id, {"description": None})
        assert changed is not None
        assert (changed.description, changed.events, changed.endpoint_url) == (None, ["deal.won"], made.endpoint_url)
        assert changed.updated_at > made.updated_at
        changed = await subscriptions.update(conn, made.id, {"events": [], "endpoint_url": "https://example.org/"})
        assert changed is not None
        assert (changed.events, changed.endpoint_url, changed.enabled) == ([], "https://example.org/", True)
        cursor = await conn.execute("SELECT version FROM dealix.subscriptions")
        assert await cursor.fetchall() == [(3,)]


async def test_disabling_gives_the_reason_requested_and_disabling_again_keeps_an_older_reason(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        made, _ = await make(conn)
        disabled = await subscriptions.update(conn, made.id, {"enabled": False})
        assert disabled is not None
        assert (disabled.enabled, disabled.disabled_reason) == (False, "requested")
        await conn.execute("UPDATE dealix.subscriptions SET disabled_reason = 'gone'")
        again = await subscriptions.update(conn, made.id, {"enabled": False})
        assert again is not None
        assert again.disabled_reason == "gone"


async def test_enabling_sets_the_failures_to_zero_and_closes_the_breaker(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        made, _ = await make(conn)
        await conn.execute("UPDATE dealix.subscriptions SET enabled = false, disabled_reason = 'consecutive_failures'")
        await conn.execute("""
            UPDATE dealix.subscription_health
            SET consecutive_failures = 20, circuit = 'open', cooldown_s = 240, reopen_at = now() + interval '1 hour'
        """)
        before = await subscriptions.get(conn, made.id)
        assert before is not None
        assert (before.consecutive_failures, before.circuit) == (20, "open")
        after = await subscriptions.update(conn, made.id, {"enabled": True})
        assert after is not None
        assert (after.enabled, after.disabled_reason, after.consecutive_failures, after.circuit) == (
            True,
            None,
            0,
            "closed",
        )
        cursor = await conn.execute("SELECT cooldown_s, reopen_at FROM dealix.subscription_health")
        assert await cursor.fetchall() == [(0, None)]


async def test_an_open_breaker_shows_as_half_open_once_its_time_has_come(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        made, _ = await make(conn)
        await conn.execute("UPDATE dealix.subscription_health SET circuit = 'open', reopen_at = now() - interval '1 s'")
        found = await subscriptions.get(conn, made.id)
        (listed,) = await subscriptions.page(conn, ACME, enabled_only=False, limit=9, before=None)
        assert found is not None
        assert (found.circuit, listed.circuit) == ("half_open", "half_open")


async def test_changing_rotating_and_deleting_what_is_not_there_says_so(conn: Connection) -> None:
    nobody = SubscriptionId("whk_" + "0" * 24)
    with trio.fail_after(LIMIT_S):
        assert await subscriptions.get(conn, nobody) is None
        assert await subscriptions.update(conn, nobody, {"enabled": True}) is None
        assert await subscriptions.rotate(conn, RING, nobody, 60) is None
        assert await subscriptions.delete(conn, nobody) is False


async def test_a_deleted_subscription_leaves_its_name_for_whoever_purges_its_deliveries(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        made, _ = await make(conn)
        assert await subscriptions.delete(conn, made.id) is True
        assert await subscriptions.get(conn, made.id) is None
        cursor = await conn.execute("""
            SELECT r.subscription_id, r.shard = dealix.shard_of('acme'), h.subscription_id
            FROM dealix.roster r
            LEFT JOIN dealix.subscription_health h USING (subscription_id)
        """)
        assert await cursor.fetchall() == [(made.id, True, None)]


async def test_a_rotation_keeps_the_old_secret_for_the_overlap(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        made, old = await make(conn)
        rotated = await subscriptions.rotate(conn, RING, made.id, 86_400)
        assert rotated is not None
        assert rotated.secret != old
        current, previous = await sealed(conn, made.id)
        assert subscriptions.open_secret(RING, made.id, current) == rotated.secret
        assert previous is not None
        assert subscriptions.open_previous_secret(RING, made.id, previous) == old
        with pytest.raises(SealBroken):  # sealed for the other column
            subscriptions.open_secret(RING, made.id, previous)
        cursor = await conn.execute("""
            SELECT extract(epoch FROM previous_secret_expires_at - clock_timestamp())::float8,
                   previous_secret_expires_at
            FROM dealix.subscriptions
        """)
        ((left_s, expires_at),) = await cursor.fetchall()
        assert 86_380 < left_s <= 86_400
        assert rotated.previous_secret_expires_at == expires_at


async def test_a_rotation_without_overlap_ends_the_old_secret_at_once(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        made, _ = await make(conn)
        await subscriptions.rotate(conn, RING, made.id, 600)
        rotated = await subscriptions.rotate(conn, RING, made.id, 0)
        assert rotated is not None
        assert rotated.previous_secret_expires_at is None
        assert (await sealed(conn, made.id))[1] is None


async def test_of_two_rotations_at_once_the_second_keeps_the_first_ones_secret(migrated_database: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            await connect(migrated_database, timeout_s=5, application_name="one") as one,
            await connect(migrated_database, timeout_s=5, application_name="two") as two,
        ):
            made, _ = await make(one)
            secrets: set[str] = set()

            async def rotate(conn: Connection) -> None:
                rotated = await subscriptions.rotate(conn, RING, made.id, 600)
                assert rotated is not None
                secrets.add(rotated.secret)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(rotate, one)
                nursery.start_soon(rotate, two)
            current, previous = await sealed(one, made.id)
            assert previous is not None
            assert secrets == {
                subscriptions.open_secret(RING, made.id, current),
                subscriptions.open_previous_secret(RING, made.id, previous),
            }


async def test_a_secret_that_does_not_open_can_be_rotated_away(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        made, _ = await make(conn)
        foreign = KeyRing(KEY[::-1])
        assert await seals.missing(conn, RING) == []
        assert [use.subscriptions for use in await seals.missing(conn, foreign)] == [1]
        rotated = await subscriptions.rotate(conn, foreign, made.id, 600)
        assert rotated is not None
        assert rotated.previous_secret_expires_at is None
        assert await seals.missing(conn, foreign) == []


async def test_an_import_keeps_id_and_secret_and_a_second_one_changes_nothing(conn: Connection) -> None:
    record = NewRow(
        id=SubscriptionId("whk_" + "a" * 24),
        customer_id=ACME,
        endpoint_url="https://example.com/",
        events=["lead.created"],
        description=None,
        secret="whsec_url-safe_text",
        enabled=False,
    )
    with trio.fail_after(LIMIT_S):
        async with conn.transaction():
            assert await import_one(conn, RING, record) == "imported"
        async with conn.transaction():
            assert await import_one(conn, RING, record) == "unchanged"
        found = await subscriptions.get(conn, record.id)
        assert found is not None
        assert (found.enabled, found.disabled_reason, found.events) == (False, "requested", ["lead.created"])
        assert subscriptions.open_secret(RING, record.id, (await sealed(conn, record.id))[0]) == record.secret


async def test_an_import_refuses_an_id_that_is_there_with_other_contents_and_names_them(conn: Connection) -> None:
    record = NewRow(SubscriptionId("whk_" + "a" * 24), ACME, "https://example.com/", [], None, "whsec_YWJj")
    other = NewRow(record.id, ACME, "https://example.com/other", [], None, "whsec_ZGVm")
    with trio.fail_after(LIMIT_S):
        await import_one(conn, RING, record)
        with pytest.raises(ImportConflict, match=r"exists already, with other endpoint_url, secret$"):
            await import_one(conn, RING, other)


async def test_an_import_may_not_pass_the_limit_of_a_customer(conn: Connection) -> None:
    with trio.fail_after(LIMIT_S):
        for _ in range(100):
            await make(conn)
        with pytest.raises(SubscriptionLimit):
            await import_one(
                conn, RING, NewRow(SubscriptionId("whk_" + "b" * 24), ACME, "https://e.com/", [], None, "whsec_YWJj")
            )
