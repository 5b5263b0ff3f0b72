"""dealix.emit among other sessions: transactions, wake-ups, and what it waits for (hardly anything)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Final

import psycopg
import pytest
from psycopg import errors

from daemon.store.shards import BUSY_CLASS, OWN_CLASS, WAKE, shard_of
from tests.support.emitting import LOCKS, Open, Session, emit, subscribe, woken

SHARD: Final = shard_of("acme")


def in_thread(act: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Start something that is expected to wait; its result, or what it raised, comes into the list."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(act())
        except psycopg.Error as e:
            results.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def wait_until_blocked(watcher: Session, session: Session) -> None:
    """Return once the server says that `session` waits for a lock."""
    while watcher.execute(
        "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %(pid)s", {"pid": session.info.backend_pid}
    ).fetchone() != ("Lock",):
        pass


def own(owner: Session) -> None:
    owner.execute("SELECT pg_advisory_lock(%(own)s, %(shard)s)", {"own": OWN_CLASS, "shard": SHARD})


# ── transactions ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.threat("N111")
def test_nobody_sees_an_event_before_its_transaction_commits_and_a_rollback_leaves_nothing(open_session: Open) -> None:
    emitter, reader = open_session(), open_session()
    subscribe(reader, 1)
    own(reader)
    reader.execute(f"LISTEN {WAKE}")
    for end, left in (("ROLLBACK", 0), ("COMMIT", 1)):
        emitter.execute("BEGIN")
        emit(emitter, event_id="own")
        assert reader.execute("SELECT count(*) FROM dealix.outbox").fetchone() == (0,)
        assert woken(reader) == []
        emitter.execute(end.encode())
        for table in ("outbox", "events", "event_keys"):
            assert reader.execute(f"SELECT count(*) FROM dealix.{table}".encode()).fetchone() == (left,)
        assert woken(reader) == [str(SHARD)] * left


@pytest.mark.threat("N111")
def test_a_rolled_back_savepoint_takes_its_event_with_it_and_no_other(db: Session) -> None:
    subscribe(db, 1)
    with db.transaction():
        kept, _ = emit(db)
        with db.transaction(force_rollback=True):
            emit(db, event_id="own")
        with pytest.raises(errors.InvalidParameterValue), db.transaction():
            emit(db, customer_id="a b")
        assert emit(db, '{"second": true}', "own") == ("own", 1)
    assert {row[0] for row in db.execute("SELECT event_id FROM dealix.outbox").fetchall()} == {kept, "own"}


def test_of_two_transactions_with_one_own_id_the_second_waits_and_gets_the_firsts_event(open_session: Open) -> None:
    first, second, watcher = open_session(), open_session(), open_session()
    subscribe(watcher, 1)
    first.execute("BEGIN")
    assert emit(first, '{"n": 1}', "own") == ("own", 1)
    thread, results = in_thread(lambda: emit(second, '{"n": 1}', "own"))
    wait_until_blocked(watcher, second)
    assert emit(watcher, '{"n": 1}', "another") == ("another", 1)
    first.execute("COMMIT")
    thread.join(10)
    assert results == [("own", 1)]
    assert watcher.execute("SELECT count(*) FROM dealix.events WHERE id = 'own'").fetchone() == (1,)


def test_if_the_first_rolls_back_the_second_ones_event_is_the_event(open_session: Open) -> None:
    first, second, watcher = open_session(), open_session(), open_session()
    first.execute("BEGIN")
    emit(first, '{"n": 1}', "own")
    thread, results = in_thread(lambda: emit(second, '{"n": 2}', "own"))
    wait_until_blocked(watcher, second)
    first.execute("ROLLBACK")
    thread.join(10)
    assert results == [("own", 0)]
    assert watcher.execute("SELECT data FROM dealix.events").fetchall() == [('{"n": 2}',)]


@pytest.mark.threat("N101")
def test_of_many_sessions_with_one_own_id_at_once_one_makes_the_event(open_session: Open) -> None:
    watcher = open_session()
    subscribe(watcher, 1)
    threads = [in_thread(partial(emit, open_session(), '{"n": 1}', "own")) for _ in range(10)]
    for thread, _ in threads:
        thread.join(10)
    assert [results for _, results in threads] == [[("own", 1)]] * 10
    assert watcher.execute("SELECT count(*) FROM dealix.outbox").fetchone() == (1,)


@pytest.mark.external_postgres
@pytest.mark.threat("N113")
def test_an_emit_without_notify_can_be_prepared_and_committed_by_another_session(debian_database: str) -> None:
    """On Debian's server, which is set up with max_prepared_transactions."""
    with (
        psycopg.connect(debian_database, autocommit=True) as db,
        psycopg.connect(debian_database, autocommit=True) as other,
    ):
        subscribe(db, 1)
        own(other)
        db.execute("BEGIN")
        db.execute("SELECT dealix.emit('acme', 'deal.won', '{}', 'own', notify => false)")
        db.execute("PREPARE TRANSACTION 'order-7'")
        assert db.execute("SELECT count(*) FROM dealix.outbox").fetchone() == (0,)
        other.execute("COMMIT PREPARED 'order-7'")
        assert db.execute("SELECT event_id FROM dealix.outbox").fetchall() == [("own",)]
        db.execute("BEGIN")
        emit(db)
        with pytest.raises(errors.FeatureNotSupported, match="NOTIFY"):  # what notify => false is there for
            db.execute("PREPARE TRANSACTION 'order-8'")


# ── wake-ups ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_owner_is_woken_unless_it_holds_the_busy_lock_of_the_shard(open_session: Open) -> None:
    emitter, owner = open_session(), open_session()
    subscribe(owner, 1)
    owner.execute(f"LISTEN {WAKE}")
    own(owner)
    emit(emitter)
    assert woken(owner) == [str(SHARD)]
    owner.execute("SELECT pg_advisory_lock(%(busy)s, %(shard)s)", {"busy": BUSY_CLASS, "shard": SHARD})
    emit(emitter)
    assert woken(owner) == []
    owner.execute("SELECT pg_advisory_unlock(%(busy)s, %(shard)s)", {"busy": BUSY_CLASS, "shard": SHARD})
    owner.execute("SELECT pg_advisory_lock(%(busy)s, %(shard)s)", {"busy": BUSY_CLASS, "shard": (SHARD + 1) % 64})
    emit(emitter)
    assert woken(owner) == [str(SHARD)]


def test_nobody_is_woken_for_a_shard_that_nobody_owns(open_session: Open) -> None:
    emitter, listener = open_session(), open_session()
    subscribe(listener, 1)
    listener.execute(f"LISTEN {WAKE}")
    emit(emitter)
    assert woken(listener) == []
    assert emitter.execute(LOCKS).fetchone() == (0,)


def test_nobody_is_woken_where_nothing_matched_or_notify_is_false(open_session: Open) -> None:
    emitter, owner = open_session(), open_session()
    own(owner)
    owner.execute(f"LISTEN {WAKE}")
    emit(emitter)
    subscribe(owner, 1)
    emitter.execute("SELECT dealix.emit('acme', 'deal.won', '{}', notify => false)")
    assert woken(owner) == []


def test_no_emit_leaves_a_lock_in_its_session_nor_keeps_the_owner_from_its_own(open_session: Open) -> None:
    emitter, owner = open_session(), open_session()
    subscribe(owner, 1)
    lock = ("SELECT pg_try_advisory_lock(%(busy)s, %(shard)s)", {"busy": BUSY_CLASS, "shard": SHARD})
    emitter.execute("BEGIN")
    emit(emitter)
    assert emitter.execute(LOCKS).fetchone() == (0,)
    assert owner.execute(*lock).fetchone() == (True,)
    emit(emitter)
    assert emitter.execute(LOCKS).fetchone() == (0,)
    emitter.execute("COMMIT")
    assert emitter.execute(LOCKS).fetchone() == (0,)


def test_emits_that_are_cancelled_at_any_moment_leave_no_lock_in_their_session(open_session: Open) -> None:
    emitter = open_session()
    subscribe(emitter, 1)
    cancelled = 0
    for n in range(40):
        timer = threading.Timer(n / 2_000, emitter.cancel)
        timer.start()
        try:
            emitter.execute("SELECT dealix.emit('acme', 'deal.won', '{}') FROM generate_series(1, 5000)")
        except errors.QueryCanceled:
            cancelled += 1
        timer.join()
        assert emitter.execute(LOCKS).fetchone() == (0,)
    assert cancelled > 30


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CHANGES: Final = (
    "UPDATE dealix.subscriptions SET description = 'changed'",
    "UPDATE dealix.subscription_health SET consecutive_failures = 3",
    "SELECT FROM dealix.subscriptions FOR UPDATE",
    "DELETE FROM dealix.subscriptions",
    "SELECT dealix.make_partition('events', '2031-01-01')",
    "INSERT INTO dealix.event_types VALUES ('order.paid', 'An order was paid.')",
    "SELECT dealix.emit('acme', 'deal.won', '{}')",
)


@pytest.mark.parametrize("change", CHANGES)
def test_an_emit_waits_for_no_open_transaction(open_session: Open, change: str) -> None:
    busy, emitter = open_session(), open_session()
    subscribe(busy, 1)
    emitter.execute("SET lock_timeout = '500ms'")
    with busy.transaction(force_rollback=True):
        busy.execute(change.encode())
        assert emit(emitter)[1] == 1
        assert emit(emitter, event_id="own")[1] == 1
        assert emit(emitter, event_id="evt_" + "0" * 24)[1] == 1


@pytest.mark.parametrize("change", CHANGES)
def test_an_open_emit_keeps_no_change_waiting(open_session: Open, change: str) -> None:
    emitter, busy = open_session(), open_session()
    subscribe(busy, 1)
    busy.execute("SET lock_timeout = '500ms'")
    with emitter.transaction():
        emit(emitter)
        emit(emitter, event_id="own")
        with busy.transaction(force_rollback=True):
            busy.execute(change.encode())
