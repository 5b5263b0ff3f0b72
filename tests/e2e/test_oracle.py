"""The oracle itself: it finds each kind of wrong that it is there to find."""

from __future__ import annotations

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


class Product:
    """Does by hand what the product should do, and what it should not."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.event_id = scene.emit()
        scene.rows("DELETE FROM dealix.outbox")

    def send(self, attempt: int, body: bytes = b"{}", event_id: str | None = None) -> None:
        headers = {"webhook-id": event_id or self.event_id, "dealix-delivery-attempt": str(attempt)}
        httpx.post(self.scene.receiver.url("s1"), content=body, headers=headers)

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
