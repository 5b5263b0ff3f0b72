"""What each answer of a real receiver comes to: the log, the delivery, the counters, the statistics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from socket import AF_INET, SOCK_STREAM
from typing import Final

import pytest
import trio
from stripe import WebhookSignature

from daemon.policy.latency import BUCKETS
from daemon.store import subscriptions
from tests.support import answers
from tests.support.answers import Answer, status
from tests.support.certificates import Authority
from tests.support.engine import RING, Running, running_engine
from tests.support.receiver import open_receiver

TIMEOUT_S: Final = 0.7
SCHEDULE_S: Final = (30, 300, 1800, 21600, 86400)


@dataclass(frozen=True)
class Case:
    """An answer and what it has to come to. `error` is how its sentence begins."""

    answer: Answer
    outcome: str
    status_code: int | None = None
    error: str | None = None
    is_slow: bool = False


CASES: Final = {
    "200": Case(status(200), "delivered", 200),
    "201": Case(status(201), "delivered", 201),
    "204": Case(status(204), "delivered", 204),
    "299": Case(status(299), "delivered", 299),
    "2xx whose body drips": Case(answers.drip_body(200), "delivered", 200, is_slow=True),
    "2xx whose body is cut off": Case(
        answers.close(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), "delivered", 200
    ),
    "400": Case(status(400), "failed", 400),
    "401": Case(status(401), "failed", 401),
    "404": Case(status(404), "failed", 404),
    "418": Case(status(418), "failed", 418),
    "304": Case(status(304), "failed", 304),
    "410": Case(status(410), "gone", 410),
    "408": Case(status(408), "retry", 408),
    "429": Case(status(429), "retry", 429),
    "500": Case(status(500), "retry", 500),
    "503": Case(status(503), "retry", 503),
    "5xx whose body drips": Case(answers.drip_body(500), "retry", 500, is_slow=True),
    "nothing": Case(answers.hang(), "retry", None, "No complete answer came", is_slow=True),
    "a head that drips": Case(answers.drip_head(), "retry", None, "No complete answer came", is_slow=True),
    "an end": Case(answers.close(), "retry", None, "The connection was closed before"),
    "a reset": Case(answers.reset(), "retry", None, "The connection was reset"),
    "half a head and a reset": Case(answers.reset(b"HTTP/1.1 200 O"), "retry", None, "The connection was reset"),
    "garbage": Case(answers.close(b"220 mail.example ESMTP\r\n\r\n"), "retry", None, "The answer is not valid HTTP"),
    "headers without an end": Case(answers.endless_headers(), "retry", None, "The answer is not valid HTTP"),
    "interim answers without an end": Case(answers.interim_flood(), "retry", None, "The answer is not valid HTTP"),
}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def due_in_s(running: Running, subscription_id: str) -> float:
    rows = await running.rows(
        "SELECT extract(epoch FROM due - now())::float8 FROM dealix.deliveries "
        "WHERE subscription_id = %s AND NOT claimed",
        subscription_id,
    )
    return rows[0][0]


@pytest.mark.threat("N45")
async def test_each_answer_has_the_outcome_of_the_contract(any_database: str) -> None:
    with trio.fail_after(30):
        async with (
            open_receiver() as receiver,
            running_engine(any_database, delivery={"timeout_s": TIMEOUT_S}) as running,
        ):
            ids: dict[str, str] = {}
            for n, (name, case) in enumerate(CASES.items()):
                receiver.answer(f"/{n}", case.answer)
                ids[name] = await running.subscribe(receiver.url(f"/{n}"), customer_id=f"c{n}")
            for n in range(len(CASES)):
                await running.emit(customer_id=f"c{n}")
            rows = {row.subscription_id: row for row in await running.logged(len(CASES))}
            for name, case in CASES.items():
                row = rows[ids[name]]
                health = await running.subscription(ids[name])
                assert (name, row.outcome, row.status_code) == (name, case.outcome, case.status_code)
                assert (name, row.attempt, row.success) == (name, 1, case.outcome == "delivered")
                assert row.error is None if case.error is None else (row.error or "").startswith(case.error), name
                assert row.duration_ms is not None
                assert (name, row.duration_ms >= TIMEOUT_S * 1000) == (name, case.is_slow)
                assert row.duration_ms < TIMEOUT_S * 1000 + 1000
                assert (name, health.consecutive_failures) == (name, 0 if row.success else 1)
                assert (health.last_status_code, health.last_delivery_at) == (case.status_code, row.created_at)
                assert (name, health.disabled_reason) == (name, "gone" if case.outcome == "gone" else None)
            waiting = {row[0] for row in await running.rows("SELECT subscription_id FROM dealix.deliveries")}
            assert waiting == {ids[name] for name, case in CASES.items() if case.outcome == "retry"}
            for subscription_id in waiting:
                assert 20 < await due_in_s(running, subscription_id) <= 33
            assert [len(receiver.at(f"/{n}")) for n in range(len(CASES))] == [1] * len(CASES)


async def test_redirects_fail_and_are_not_followed(migrated_database: str) -> None:
    codes = (301, 302, 303, 307, 308)
    with trio.fail_after(20):
        async with open_receiver() as trap, open_receiver() as receiver, running_engine(migrated_database) as running:
            for code in codes:
                receiver.answer(f"/{code}", answers.redirect(trap.url("/trap"), code))
                await running.subscribe(receiver.url(f"/{code}"), customer_id=f"c{code}")
                await running.emit(customer_id=f"c{code}")
            rows = await running.logged(len(codes))
            assert sorted((r.status_code, r.outcome, r.error) for r in rows) == [(c, "failed", None) for c in codes]
            assert await running.count() == 0
            assert trap.connections == 0


async def test_a_refused_connection_is_retried(migrated_database: str) -> None:
    with trio.socket.socket(AF_INET, SOCK_STREAM) as taken:
        await taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets the port
        with trio.fail_after(20):
            async with running_engine(migrated_database) as running:
                await running.subscribe(f"http://127.0.0.1:{taken.getsockname()[1]}/")
                await running.emit()
                (row,) = await running.logged(1)
                assert (row.outcome, row.status_code) == ("retry", None)
                assert "refused" in (row.error or "")
                assert row.signature is None


async def test_tls_that_does_not_verify_is_a_retry_that_sent_nothing(
    migrated_database: str, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "stranger").mkdir()
    stranger = Authority(tmp_path / "stranger")
    with trio.fail_after(20):
        async with (
            open_receiver(tls=authority.server("localhost"), host="localhost", bind="127.0.0.1") as good,
            open_receiver(tls=stranger.server("localhost"), host="localhost", bind="127.0.0.1") as unknown,
            open_receiver(tls=authority.server("example.com"), host="localhost", bind="127.0.0.1") as misnamed,
            open_receiver(host="localhost", bind="127.0.0.1") as plain,
            running_engine(migrated_database, ca_file=authority.ca_file, delivery={"timeout_s": 1}) as running,
        ):
            urls = [good.url(), unknown.url(), misnamed.url(), plain.url().replace("http:", "https:")]
            for n, url in enumerate(urls):
                await running.subscribe(url, customer_id=f"c{n}")
                await running.emit(customer_id=f"c{n}")
            rows = {row.endpoint_url: row for row in await running.logged(4)}
            assert [rows[url].outcome for url in urls] == ["delivered", "retry", "retry", "retry"]
            assert all("certificate" in (rows[url].error or "") for url in urls[1:3])
            assert "TLS" in (rows[urls[3]].error or "")
            assert len(good.received) == 1
            assert unknown.received == misnamed.received == plain.received == []


async def test_an_address_that_the_operator_does_not_allow_is_never_connected_to(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database, egress={"allow_localhost": False}) as running,
        ):
            await running.subscribe(receiver.url())
            await running.emit()
            (row,) = await running.logged(1)
            assert (row.outcome, row.status_code, row.signature) == ("retry", None, None)
            assert row.error
            assert receiver.connections == 0


@pytest.mark.threat("N45")
async def test_retry_after_is_honoured_where_it_is_longer(migrated_database: str) -> None:
    in_two_hours = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    expected_s = {
        "120": (115, 120),
        "5": (25, 33),
        in_two_hours: (7100, 7200),
        "86401": (86_390, 86_400),
        "1" + "0" * 30: (86_390, 86_400),
        "-1": (25, 33),
        "soon": (25, 33),
    }
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            ids: dict[str, str] = {}
            for n, value in enumerate(expected_s):
                receiver.answer(f"/{n}", status(429, headers={"Retry-After": value}))
                ids[value] = await running.subscribe(receiver.url(f"/{n}"), customer_id=f"c{n}")
                await running.emit(customer_id=f"c{n}")
            await running.logged(len(expected_s))
            for value, (low_s, high_s) in expected_s.items():
                assert low_s < await due_in_s(running, ids[value]) <= high_s, value


@pytest.mark.threat("N120")
async def test_six_attempts_carry_identical_bytes_and_then_the_delivery_is_exhausted(migrated_database: str) -> None:
    with trio.fail_after(30):
        async with (
            open_receiver() as receiver,
            running_engine(migrated_database, delivery={"breaker_after": 100}) as running,
        ):
            receiver.answer_all(status(503, b"busy"))
            subscription_id, secret = await running.subscribe_with_secret(receiver.url("/hook"))
            event_id = await running.emit({"deal": "é😀", "n": 1.0})
            for attempt, wait_s in enumerate(SCHEDULE_S, 1):
                await running.logged(attempt)
                assert wait_s - 5 < await due_in_s(running, subscription_id) <= wait_s * 1.1
                await running.make_due()
            rows = await running.logged(6)
            requests = receiver.received
            assert [r.headers["dealix-delivery-attempt"] for r in requests] == ["1", "2", "3", "4", "5", "6"]
            assert {r.body for r in requests} == {requests[0].body}
            assert {r.headers["webhook-id"] for r in requests} == {event_id}
            assert all(
                WebhookSignature.verify_header(r.body, r.headers["dealix-signature"], secret, tolerance=60)
                for r in requests
            )
            assert [(r.attempt, r.outcome) for r in rows] == [(n, "retry") for n in range(1, 6)] + [(6, "exhausted")]
            assert [r.signature for r in rows] == [r.headers["dealix-signature"] for r in requests]
            assert {(r.response_body, r.event_id, r.status_code) for r in rows} == {("busy", event_id, 503)}
            assert await running.count() == 0
            assert (await running.subscription(subscription_id)).consecutive_failures == 6
            ((success, failed, buckets),) = await running.rows(
                "SELECT success, failed, latency_buckets FROM dealix.daily_stats "
                "WHERE customer_id = 'acme' AND event_type = 'deal.won'"
            )
            assert (success, failed, sum(buckets), len(buckets)) == (0, 6, 6, BUCKETS)


async def test_a_success_ends_a_row_of_failures_and_the_statistics_have_both(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer("/hook", status(500), status(500), status(200))
            subscription_id = await running.subscribe(receiver.url("/hook"))
            await running.emit()
            for attempt in (1, 2):
                await running.logged(attempt)
                assert (await running.subscription(subscription_id)).consecutive_failures == attempt
                await running.make_due()
            await running.logged(3)
            assert (await running.subscription(subscription_id)).consecutive_failures == 0
            rows = await running.rows(
                "SELECT day = (now() AT TIME ZONE 'UTC')::date, customer_id, event_type, success, failed "
                "FROM dealix.daily_stats"
            )
            assert rows == [(True, "acme", "deal.won", 1, 2)]
            hours = await running.rows(
                "SELECT customer_id, sum(success)::int, sum(failed)::int, sum(b)::int, "
                "bool_and(hour BETWEEN now() - interval '2 h' AND now() AND hour = date_trunc('hour', hour, 'UTC')) "
                "FROM (SELECT h.*, (SELECT sum(n) FROM unnest(latency_buckets) n) AS b FROM dealix.hourly_stats h) t "
                "GROUP BY customer_id"
            )
            assert hours == [("acme", 1, 2, 3, True)]


async def test_gone_disables_at_once_and_nothing_more_is_sent(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer_all(status(410))
            subscription_id = await running.subscribe(receiver.url())
            await running.emit()
            await running.logged(1)
            found = await running.subscription(subscription_id)
            assert (found.enabled, found.disabled_reason, found.consecutive_failures) == (False, "gone", 1)
            await running.emit()
            assert await running.count("outbox") == 0
            assert await running.count() == 0
            assert len(receiver.received) == 1


@pytest.mark.threat("N99")
async def test_after_a_rotation_the_very_next_request_carries_both_signatures(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            subscription_id, old = await running.subscribe_with_secret(receiver.url())
            await running.emit()
            await receiver.wait_for(1)
            async with running.pool.connection(5) as conn:
                rotated = await subscriptions.rotate(conn, RING, subscription_id, 3600)
            assert rotated is not None
            await running.emit()
            request = (await receiver.wait_for(2))[1]
            assert all(
                WebhookSignature.verify_header(request.body, request.headers["dealix-signature"], secret)
                for secret in (old, rotated.secret)
            )
            assert len(request.headers["webhook-signature"].split(" ")) == 2


async def test_the_log_names_the_url_that_was_called_although_it_changed_meanwhile(migrated_database: str) -> None:
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer("/old", status(500, delay_s=0.3))
            subscription_id = await running.subscribe(receiver.url("/old"))
            await running.emit()
            await receiver.wait_for(1)
            await running.change(subscription_id, {"endpoint_url": receiver.url("/new")})
            await running.logged(1)
            await running.make_due()
            rows = await running.logged(2)
            assert [(r.endpoint_url, r.outcome) for r in rows] == [
                (receiver.url("/old"), "retry"),
                (receiver.url("/new"), "delivered"),
            ]


@pytest.mark.threat("N42")
async def test_what_a_hostile_receiver_answers_is_stored_harmlessly(migrated_database: str) -> None:
    hostile = b"HTTP/1.1 200 OK\r\nX-Odd: \xff\xfe\x80\r\nContent-Length: 12\r\n\r\na\0b\xff\xfe\xed\xa0\x80\x1b[2J"
    with trio.fail_after(20):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer_all(answers.close(hostile))
            await running.subscribe(receiver.url())
            await running.emit()
            (row,) = await running.logged(1)
            assert row.outcome == "delivered"
            assert row.response_body is not None
            assert "\0" not in row.response_body
            ((response_headers,),) = await running.rows("SELECT response_headers FROM dealix.attempts")
            assert "X-Odd" in [name for name, _ in json.loads(response_headers)]
