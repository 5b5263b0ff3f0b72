"""The oracle itself: it finds each kind of wrong that it is there to find."""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Callable
from typing import Final

import httpx
import pytest

from tests.e2e import oracle
from tests.e2e.scene import Scene, Subscribed
from tests.e2e.traffic import Receiver

SUBSCRIPTION: Final = f"whk_{'0' * 24}"
SUBSCRIBE: Final = """
    INSERT INTO dealix.subscriptions (id, customer_id, endpoint_url, secret_sealed) VALUES (%s, 'acme', %s, '')
"""
LOG: Final = """
    INSERT INTO dealix.attempts (id, created_at, customer_id, subscription_id, event_id, event_day, event_type, attempt,
                                 outcome, success, endpoint_url, status_code)
    VALUES (dealix.attempt_id(now()), now(), 'acme', %s, %s, current_date, 'deal.won', %s, 'delivered', true, '', 200)
"""
SHORT_S: Final = 0.5
SECRET: Final = "whsec_" + "a" * 44
OTHER_SECRET: Final = "whsec_" + "b" * 44


class Product:
    """Does by hand what the product should do, and what it should not."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.event_id = scene.emit()
        scene.rows("DELETE FROM dealix.outbox")

    def send(
        self,
        attempt: int,
        body: bytes = b"{}",
        event_id: str | None = None,
        signed: dict[str, str] | None = None,
    ) -> None:
        headers = {"webhook-id": event_id or self.event_id, "dealix-delivery-attempt": str(attempt)}
        httpx.post(self.scene.receiver.url("s1"), content=body, headers=headers | (signed or {}))

    def send_signed(self, secret: str, *, age_s: int = 0) -> None:
        """The first attempt, to a receiver that knows SECRET."""
        self.scene.receiver.tell("s1", secret=SECRET)
        stamp = int(time.time()) - age_s
        own = hmac.new(secret.encode(), f"{stamp}.{{}}".encode(), "sha256").hexdigest()
        key = base64.b64decode(secret.removeprefix("whsec_"))
        standard = hmac.new(key, f"{self.event_id}.{stamp}.{{}}".encode(), "sha256").digest()
        self.send(
            1,
            signed={
                "webhook-timestamp": str(stamp),
                "dealix-signature": f"t={stamp},v1={own}",
                "webhook-signature": f"v1,{base64.b64encode(standard).decode()}",
            },
        )

    def log(self, attempt: int, event_id: str | None = None) -> None:
        self.scene.rows(LOG, [SUBSCRIPTION, event_id or self.event_id, attempt])

    def deliver(self, attempt: int = 1) -> None:
        self.send(attempt)
        self.log(attempt)


@pytest.fixture
def product(migrated_database: str, receiver: Receiver) -> Product:
    scene = Scene(migrated_database, receiver)
    scene.open()
    scene.rows(SUBSCRIBE, [SUBSCRIPTION, receiver.url("s1")])
    scene.subscribed.append(Subscribed(SUBSCRIPTION, "s1", "acme", ()))
    return Product(scene)


def test_it_finds_nothing_where_all_is_well(product: Product) -> None:
    product.deliver()
    verdict = oracle.judge(product.scene)
    assert (verdict.duties, verdict.duplicates, verdict.repeated, verdict.interrupted) == (1, 0, set(), set())


def test_it_counts_what_came_twice(product: Product) -> None:
    product.deliver(1)
    product.deliver(2)
    verdict = oracle.judge(product.scene)
    assert (verdict.duplicates, verdict.repeated) == (1, {(product.event_id, "s1", 1)})


@pytest.mark.parametrize("ahead_s", [0, 3600, -7200])
def test_a_signature_is_fresh_by_the_clock_of_its_daemon(product: Product, ahead_s: int) -> None:
    product.scene.clocks.append(ahead_s)
    product.send_signed(SECRET, age_s=-ahead_s)
    product.log(1)
    assert oracle.judge(product.scene).duplicates == 0


def test_a_thawed_daemon_may_send_the_one_request_that_the_freeze_met(product: Product) -> None:
    product.deliver(2)
    product.send_signed(SECRET, age_s=60)
    product.log(1)
    with pytest.raises(AssertionError, match=r"signed 6\d\.\d s ago"):
        oracle.judge(product.scene)
    product.scene.thawed = 1
    assert oracle.judge(product.scene).repeated == {(product.event_id, "s1", 1)}


def sign_with_another_secret(product: Product) -> None:
    product.send_signed(OTHER_SECRET)


def sign_for_a_minute_ago(product: Product) -> None:
    product.send_signed(SECRET, age_s=60)


def sign_by_a_clock_that_nobody_has(product: Product) -> None:
    product.scene.clocks.append(3600)
    product.send_signed(SECRET, age_s=3600)


def lose(product: Product) -> None:
    product.log(1)


def send_what_was_rolled_back(product: Product) -> None:
    product.deliver()
    product.send(1, event_id="evt_rolled_back")
    product.log(1, event_id="evt_rolled_back")


def change_the_bytes(product: Product) -> None:
    product.deliver()
    product.send(2, body=b"{ }")
    product.log(2)


def send_a_superseded_claim(product: Product) -> None:
    product.deliver(2)
    product.deliver(1)


def forget_the_log(product: Product) -> None:
    product.deliver(1)
    product.send(2)


def leave_work(product: Product) -> None:
    product.deliver()
    product.scene.rows(
        "INSERT INTO dealix.outbox (shard, event_id, event_day, event_type, data_bytes, subscription_ids)"
        " VALUES (0, 'evt_left', current_date, 'deal.won', 2, %s)",
        [[SUBSCRIPTION]],
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (sign_with_another_secret, "another secret"),
        (sign_for_a_minute_ago, r"signed 6\d\.\d s ago"),
        (sign_by_a_clock_that_nobody_has, r"signed 360\d\.\d s ago"),
        (lose, "every event at every endpoint"),
        (send_what_was_rolled_back, "no committed transaction"),
        (change_the_bytes, "same bytes"),
        (send_a_superseded_claim, r"\[2, 1\]"),
        (forget_the_log, "not in the log"),
        (leave_work, "everything recorded"),
    ],
)
def test_it_finds_what_is_wrong(product: Product, wrong: Callable[[Product], None], said: str) -> None:
    wrong(product)
    with pytest.raises(AssertionError, match=said):
        oracle.judge(product.scene, within_s=SHORT_S)
