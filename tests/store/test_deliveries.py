"""The delivery log as it is read: pages, filters, one attempt, and the retry that a person asks for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from psycopg import AsyncCursor
from psycopg.abc import Params, QueryNoTemplate
from psycopg.rows import TupleRow

from daemon import clock
from daemon.ids import CustomerId, new_attempt_id
from daemon.policy.retry import decide
from daemon.store import deliveries
from daemon.store.connection import Connection, connect
from daemon.store.deliveries import Attempt, Filter, id_at
from daemon.store.events import AHEAD
from daemon.store.sessions import Database
from daemon.store.shards import DUE, shard_of
from tests.support.log import Row, make_days, write

LIMIT_S: Final = 30.0
W1, W2 = "whk_" + "1" * 24, "whk_" + "2" * 24
ACME: Final = Filter(CustomerId("acme"))


@pytest.fixture
async def conn(migrated_database: str) -> AsyncGenerator[Connection]:
    with trio.fail_after(LIMIT_S):
        async with await connect(migrated_database, timeout_s=5, application_name="test") as connection:
            yield connection


async def ids_of(conn: Connection, wanted: Filter, *, limit: int = 500, days: int = 31) -> list[str]:
    """The ids on all pages."""
    oldest = clock.now() - timedelta(days=days)
    found: list[str] = []
    before: str | None = None
    for _ in range(1000):
        page = await deliveries.page(conn, wanted, limit=limit, before=before, oldest=oldest, look_s=10)
        assert len(page.rows) <= limit
        found += [row.id for row in page.rows]
        before = page.before
        if before is None:
            return found
    raise AssertionError("the pages do not end")


async def test_pages_of_any_size_hold_every_attempt_once_newest_first_across_days(conn: Connection) -> None:
    await make_days(conn, days_back=31)
    now = clock.now()
    moments = [now - timedelta(days=d, hours=h, microseconds=h) for d in (0, 0, 1, 2, 5, 9, 17, 30) for h in (0, 1, 7)]
    moments.append(datetime(now.year, now.month, now.day, tzinfo=UTC))  # midnight
    moments.append(moments[-1] - timedelta(microseconds=1))
    made = await write(conn, [Row(W1, f"evt_{i}", created_at=m) for i, m in enumerate(moments)])
    await write(conn, [Row(W2, customer_id="globex", created_at=m) for m in moments])
    for limit in (1, 2, 7, 26, 500):
        assert await ids_of(conn, ACME, limit=limit) == sorted(made, reverse=True)
    in_reach = [i for i, m in zip(made, moments, strict=True) if m > now - timedelta(days=6)]
    assert await ids_of(conn, ACME, days=6) == sorted(in_reach, reverse=True)


@pytest.mark.parametrize("look", [500, 2], ids=["one look", "many looks"])
async def test_each_filter_alone_and_all_together_choose_what_they_say(
    conn: Connection, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    monkeypatch.setattr(deliveries, "_FIRST_LOOK", look)
    monkeypatch.setattr(deliveries, "_LONGEST_LOOK", look)
    await make_days(conn, days_back=3)
    now = clock.now()
    rows = [
        Row(w, event_id, customer_id, event_type, outcome=outcome, created_at=now - timedelta(hours=11 * n, seconds=n))
        for n, (w, event_id, customer_id, event_type, outcome) in enumerate(
            (w, e, c, t, o)
            for w in (W1, W2)
            for e in ("a", "b")
            for c in ("acme", "globex")
            for t in ("deal.won", "deal.lost")
            for o in ("delivered", "failed")
        )
        if n < 7 or n % 2
    ]
    rows = [replace(row, created_at=max(row.created_at, now - timedelta(days=3))) for row in rows]
    made = dict(zip(await write(conn, rows), rows, strict=True))
    since, until = now - timedelta(hours=60), now - timedelta(hours=5)
    for w in (None, W1):
        for e in (None, "b"):
            for t in (None, "deal.lost"):
                for success in (None, True, False):
                    for start, end in ((None, None), (since, until)):
                        wanted = Filter(CustomerId("acme"), w, e, t, success, start, end)
                        expected = [
                            i
                            for i, row in made.items()
                            if row.customer_id == "acme"
                            and w in {None, row.subscription_id}
                            and e in {None, row.event_id}
                            and t in {None, row.event_type}
                            and success in {None, row.outcome == "delivered"}
                            and (start is None or row.created_at >= start)
                            and (end is None or row.created_at < end)
                        ]
                        for limit in (2, 100):
                            assert await ids_of(conn, wanted, limit=limit) == sorted(expected, reverse=True), wanted


async def test_since_is_included_and_until_is_not_to_the_microsecond(conn: Connection) -> None:
    moment = clock.now().replace(microsecond=500_499)
    before, at, after = await write(conn, [Row(W1, created_at=moment + timedelta(microseconds=n)) for n in (-1, 0, 1)])
    assert set(await ids_of(conn, replace(ACME, since=moment))) == {at, after}
    assert set(await ids_of(conn, replace(ACME, until=moment))) == {before}
    assert await ids_of(conn, replace(ACME, since=moment, until=moment)) == []
    assert await ids_of(conn, replace(ACME, since=moment + timedelta(days=9000))) == []
    assert await ids_of(conn, replace(ACME, until=datetime(1970, 1, 1, tzinfo=UTC))) == []


async def test_a_look_that_takes_too_long_ends_with_a_place_to_go_on_from(conn: Connection) -> None:
    await make_days(conn, days_back=20)
    made = await write(conn, [Row(W1, created_at=clock.now() - timedelta(days=19))])
    oldest = clock.now() - timedelta(days=20)
    looks = 0
    before, found = None, []
    while True:
        page = await deliveries.page(conn, ACME, limit=5, before=before, oldest=oldest, look_s=-1)
        looks += 1
        found += [row.id for row in page.rows]
        before = page.before
        if before is None:
            break
    assert found == made
    assert 2 < looks <= 4 * 20 + 2  # never less than six hours at a time


async def test_what_hardly_fits_is_found_by_looks_through_so_many_rows_each(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "_FIRST_LOOK", 3)
    monkeypatch.setattr(deliveries, "_LONGEST_LOOK", 12)
    now = clock.now()
    made = await write(
        conn,
        [
            Row(W1, event_type="deal.lost" if n == 97 else "deal.won", created_at=now - timedelta(seconds=n))
            for n in range(100)
        ],
    )
    wanted, oldest = replace(ACME, event_type="deal.lost"), now - timedelta(hours=1)
    for look_s, count in ((-1, 34), (10, 1)):  # a page looks through at least three
        pages = [await deliveries.page(conn, wanted, limit=5, before=None, oldest=oldest, look_s=look_s)]
        while pages[-1].before is not None:
            before = pages[-1].before
            pages.append(await deliveries.page(conn, wanted, limit=5, before=before, oldest=oldest, look_s=look_s))
            assert (pages[-1].before or "") < before
        assert len(pages) == count
        assert [row.id for page in pages for row in page.rows] == [made[97]]


async def test_a_short_log_is_shown_as_a_whole_where_rows_are_not_what_takes_the_time(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "_PATIENCE", 1e9)
    await make_days(conn, days_back=20)
    made = await write(conn, [Row(W1, created_at=clock.now() - timedelta(days=d)) for d in (0, 4, 19)])
    for wanted in (ACME, replace(ACME, event_type="deal.won"), replace(ACME, subscription_id=W1)):
        page = await deliveries.page(
            conn, wanted, limit=5, before=None, oldest=clock.now() - timedelta(days=20), look_s=1e-6
        )
        assert ([row.id for row in page.rows], page.before) == (made, None)


async def test_a_row_that_goes_between_two_statements_takes_no_other_with_it(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await write(conn, [Row(W1, created_at=clock.now() - timedelta(seconds=n)) for n in range(8)])
    plain = Connection.execute

    async def execute(
        conn: Connection, query: QueryNoTemplate, params: Params | None = None, **options: bool
    ) -> AsyncCursor[TupleRow]:
        if query is deliveries._NAMED:
            await plain(conn, "DELETE FROM dealix.attempts WHERE id = %s", (made[1],))
        return await plain(conn, query, params, **options)

    monkeypatch.setattr(Connection, "execute", execute)
    assert await ids_of(conn, replace(ACME, subscription_id=W1), limit=2) == [made[0], *made[2:]]


async def test_the_attempts_of_an_event_are_sought_from_its_emission_on(conn: Connection) -> None:
    await make_days(conn, days_back=5)
    now = clock.now()
    emitted = now - timedelta(days=2)
    generated = f"evt_{int(emitted.timestamp() * 1000):012x}" + "0" * 12
    for event_id in ("order-7", generated, "unknown"):
        rows = [Row(W1, event_id, created_at=moment) for moment in (now, emitted + timedelta(seconds=1), emitted)]
        made = await write(conn, rows)
        if event_id == "order-7":
            await conn.execute(
                """INSERT INTO dealix.event_keys (customer_id, event_id, event_day, matched, digest)
                   VALUES ('acme', %s, %s, 1, '')""",
                (event_id, emitted.astimezone(UTC).date()),
            )
        assert await ids_of(conn, replace(ACME, event_id=event_id)) == made
        assert await ids_of(conn, replace(ACME, event_id=event_id, since=now - timedelta(days=1))) == made[:1]
        assert await ids_of(conn, Filter(CustomerId("globex"), event_id=event_id)) == []


async def test_somebody_elses_subscription_is_empty_to_its_end(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "_FIRST_LOOK", 2)
    await write(conn, [Row(W1) for _ in range(9)])
    for success in (None, True, False):
        wanted = Filter(CustomerId("globex"), W1, success=success)
        page = await deliveries.page(
            conn, wanted, limit=5, before=None, oldest=clock.now() - timedelta(days=1), look_s=10
        )
        assert (page.rows, page.before) == ([], None)


PLANS: Final[list[tuple[LiteralString, dict[str, object], str, str]]] = [
    (deliveries._BY_CUSTOMER, {}, "Index Scan", "attempts_customer"),
    (deliveries._FAILED, {}, "Index Scan", "attempts_customer_failed"),
    (deliveries._BY_EVENT, {"event_id": "e7"}, "Index Scan", "attempts_event"),
    (deliveries._SIFT_CUSTOMER, {"success": True}, "Index Only Scan", "attempts_customer"),
    (deliveries._SIFT_FAILED, {"subscription_id": W1}, "Index Only Scan", "attempts_customer_failed"),
    (
        deliveries._SIFT_SUBSCRIPTION,
        {"subscription_id": W1, "success": True},
        "Index Only Scan",
        "attempts_subscription",
    ),
]
"""With what their lists ask for, next to a type."""


async def test_a_list_looks_into_the_partitions_of_its_days_only_and_by_an_index(conn: Connection) -> None:
    await make_days(conn, days_back=5)
    today = clock.now().date()
    # One in four is the customer's, and of those one in ten W1's and failed: each index has fewer rows to offer than
    # the one before, and no plan ties.
    others = [Row(W2, f"e{n}") for n in range(300) if n % 10 != 7]
    others += [Row("whk_" + "3" * 24, f"g{n}", "globex") for n in range(900)]
    await write(conn, others + [Row(W1, f"e{n}", outcome="failed") for n in range(7, 300, 10)])
    await conn.execute("VACUUM ANALYZE dealix.attempts")
    await conn.execute("SET enable_seqscan = off")
    await conn.execute("SET enable_bitmapscan = off")  # cheaper for thirty rows; which index serves is the question
    low = datetime.combine(today, datetime.min.time(), UTC)
    high = low + timedelta(days=1) - timedelta(milliseconds=1)  # the whole day, for the rows are of this moment
    parameters = {
        "customer_id": "acme", "subscription_id": None, "event_id": None, "event_type": "deal.won", "success": None,
        "first": id_at(low), "before": id_at(high), "low": low, "high": high, "rows": 51, "look": 500,
    }  # fmt: skip
    for statement, asked, kind, index in PLANS:
        cursor = await conn.execute("EXPLAIN (FORMAT JSON) " + statement, parameters | asked, prepare=False)
        ((plan,),) = await cursor.fetchall()
        (scan,) = [node for node in nodes(plan[0]["Plan"]) if "Scan" in node["Node Type"] and "Plans" not in node]
        assert scan["Node Type"] == kind, plan
        cursor = await conn.execute(
            """SELECT parent.relname FROM pg_inherits i
               JOIN pg_class child ON child.oid = i.inhrelid JOIN pg_class parent ON parent.oid = i.inhparent
               WHERE child.relname = %s""",
            (scan["Index Name"],),
        )
        assert await cursor.fetchall() == [(index,)], plan
        assert scan["Relation Name"] == f"attempts_{today:%Y%m%d}"


DAY_OF_THOUSANDS: Final = """
    INSERT INTO dealix.attempts (id, created_at, customer_id, subscription_id, event_id, event_day, event_type, attempt,
                                 outcome, success, endpoint_url, response_headers)
    SELECT dealix.attempt_id(now()), now(), CASE i % 10 WHEN 0 THEN 'acme' ELSE 'c' || i % 500 END, 'whk_1',
           'evt_' || i, current_date, 'deal.won', 1, 'delivered', true, 'https://hooks.example.com/', repeat('x', 400)
    FROM generate_series(1, 20000) AS i
"""


async def test_an_index_is_walked_before_a_first_vacuum_has_said_that_it_is_all_that_is_needed(
    conn: Connection, migrated_database: str
) -> None:
    await conn.execute(f"ALTER TABLE dealix.attempts_{clock.now():%Y%m%d} SET (autovacuum_enabled = false)".encode())
    await conn.execute(DAY_OF_THOUSANDS)
    await conn.execute("ANALYZE dealix.attempts")
    pool = Database(migrated_database, migrated_database).pool("test", size=1)
    async with pool.connection(LIMIT_S) as reader:
        now = clock.now()
        parameters = {
            "customer_id": "acme", "subscription_id": None, "event_type": "deal.lost", "success": None, "rows": 51,
            "first": id_at(now - timedelta(hours=2)), "before": id_at(now + AHEAD), "low": now - timedelta(hours=2),
            "high": now + AHEAD, "look": 20_000,
        }  # fmt: skip
        cursor = await reader.execute("EXPLAIN (FORMAT JSON) " + deliveries._SIFT_CUSTOMER, parameters, prepare=False)
        ((plan,),) = await cursor.fetchall()
        scans = {node["Node Type"] for node in nodes(plan[0]["Plan"]) if "Plans" not in node}
        assert scans == {"Index Only Scan"}, plan
        assert await (await reader.execute("SHOW jit")).fetchall() == [("off",)]
    await pool.aclose()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


async def test_an_attempt_is_found_by_its_id_with_everything_the_log_holds(conn: Connection) -> None:
    midnight = datetime.combine(clock.now().date(), datetime.min.time(), UTC)
    for moment in (clock.now(), midnight, midnight - timedelta(microseconds=1), midnight + timedelta(microseconds=999)):
        (made,) = await write(conn, [Row(W1, created_at=moment, response_truncated=True)])
        found = await deliveries.find(conn, made)
        assert found is not None
        assert (found.row.id, found.row.created_at, found.customer_id) == (made, moment, "acme")
        assert found.response_headers == [("content-type", "text/plain"), ("set-cookie", "a=b"), ("set-cookie", "c=d")]
        assert (found.response_body, found.response_truncated, found.webhook_signature) == ("thanks", True, "v1,AA==")


async def test_an_id_of_no_attempt_finds_nothing_however_far_its_time_is(conn: Connection) -> None:
    for attempt_id in (
        "dlv_" + "0" * 24,
        "dlv_" + "f" * 24,
        "dlv_e677d21fdbff" + "0" * 12,
        new_attempt_id(clock.now()),
    ):
        assert await deliveries.find(conn, attempt_id) is None


async def logged(conn: Connection, *rows: Row) -> Attempt:
    """The first of the attempts, as it is found."""
    found = await deliveries.find(conn, (await write(conn, rows))[0])
    assert found is not None
    return found


async def queued(conn: Connection) -> list[tuple[object, ...]]:
    statement = """SELECT event_id, subscription_id, shard, attempt, steps, claimed, due <= now() FROM dealix.deliveries
                   ORDER BY subscription_id"""
    return await (await conn.execute(statement)).fetchall()


async def test_a_retry_of_a_finished_delivery_is_due_at_once_after_its_highest_attempt_and_final(
    conn: Connection, migrated_database: str
) -> None:
    async with await connect(migrated_database, timeout_s=5, application_name="listener") as listener:
        await listener.execute(f"LISTEN {DUE}")
        found = await logged(conn, Row(W1, attempt=1), Row(W1, attempt=6, outcome="exhausted"), Row(W2, attempt=9))
        retried = await deliveries.retry(conn, found)
        assert (retried.attempt, retried.state) == (7, "pending")
        (row,) = await queued(conn)
        assert row == ("evt_1", W1, shard_of("acme"), 6, 20, False, True)
        with trio.fail_after(5):
            assert [notice.payload for notice in await listener.next_notifies(5)] == [str(shard_of("acme"))]
    # What the engine decides about such a row when its next attempt fails.
    assert decide("retry", attempt=7, steps=20, schedule_s=[1.0] * 20, asked_s=0, chance=0).result == "exhausted"
    assert (await deliveries.retry(conn, found)).attempt == 7
    assert await queued(conn) == [row]


async def test_a_retry_pulls_a_waiting_or_held_delivery_forward_and_leaves_one_in_flight_alone(
    conn: Connection,
) -> None:
    found = await logged(conn, Row(W1, outcome="retry", attempt=2))
    insert = """
        INSERT INTO dealix.deliveries (event_id, event_day, event_type, subscription_id, shard, attempt, steps,
                                       claimed, due)
        VALUES ('evt_1', current_date, 'deal.won', %s, 1, 2, 2, %s, now() + %s * interval '1 h')"""
    for hours in (6, None):
        await conn.execute("DELETE FROM dealix.deliveries")
        await conn.execute(insert, (W1, False, hours))
        assert (await deliveries.retry(conn, found)).attempt == 3
        assert [row[3:] for row in await queued(conn)] == [(2, 2, False, True)]
    await conn.execute("UPDATE dealix.deliveries SET claimed = true, attempt = 3, due = now() + interval '50 s'")
    retried = await deliveries.retry(conn, found)
    assert (retried.attempt, retried.state) == (3, "in_flight")
    assert [row[3:] for row in await queued(conn)] == [(3, 2, True, False)]


async def test_a_retry_that_meets_a_result_being_recorded_takes_the_number_after_it(
    conn: Connection, migrated_database: str
) -> None:
    found = await logged(conn, Row(W1, outcome="retry", attempt=1))
    await conn.execute(
        """INSERT INTO dealix.deliveries (event_id, event_day, event_type, subscription_id, shard, attempt, steps,
           claimed, due) VALUES ('evt_1', current_date, 'deal.won', %s, 1, 2, 1, true, now())""",
        (W1,),
    )
    retried: list[deliveries.Retried] = []
    async with await connect(migrated_database, timeout_s=5, application_name="recorder") as recorder:

        async def retry() -> None:
            retried.append(await deliveries.retry(conn, found))

        async with trio.open_nursery() as nursery, recorder.transaction():
            await recorder.execute("DELETE FROM dealix.deliveries")
            await write(recorder, [Row(W1, outcome="failed", attempt=2)])
            nursery.start_soon(retry)
            await waits_for_a_lock(recorder)
    assert [(one.attempt, one.state) for one in retried] == [(3, "pending")]


async def waits_for_a_lock(conn: Connection) -> None:
    """Return once some other session waits for a row."""
    while True:
        # Not pg_stat_activity, which stays as it was at the first look of a transaction.
        cursor = await conn.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        if await cursor.fetchone() != (0,):
            return
        await trio.sleep(0.01)


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2999, 1, 1)))  # noqa: DTZ001 made aware below
def test_ids_sort_as_their_times_do_and_the_bound_of_a_moment_is_not_above_its_ids(naive: datetime) -> None:
    moment = naive.replace(tzinfo=UTC)
    made = new_attempt_id(moment)
    assert id_at(moment) <= made < id_at(moment + timedelta(milliseconds=2))
    bounds = deliveries.bounds_of(made)
    assert bounds is not None
    assert bounds[0] <= moment < bounds[1]
