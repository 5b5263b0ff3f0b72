"""No daemon has run for months: emits go on for 90 days, say clearly what is wrong after that, and go on at a start."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg
import pytest

from tests.e2e import oracle
from tests.e2e.scene import Scene
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import Installation

ATTACHED: Final = """
    SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'dealix.events'::regclass ORDER BY 1
"""
DROP: Final = """
    DO $$
    DECLARE
        day text := to_char(now() AT TIME ZONE 'UTC' + interval '{days} days', 'YYYYMMDD');
        old regclass;
    BEGIN
        FOR old IN SELECT i.inhrelid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                   WHERE i.inhparent IN ('dealix.events'::regclass, 'dealix.attempts'::regclass)
                     AND right(c.relname, 8) > day
        LOOP
            EXECUTE 'DROP TABLE ' || old;
        END LOOP;
    END $$
"""


def last_partition_is(scene: Scene, days: int) -> None:
    """As it would be if the last daemon had stopped 90 days before `days` from today."""
    scene.rows(DROP.format(days=days).encode())


def test_emits_outlast_the_daemon_and_then_say_what_is_missing_and_a_start_makes_up_for_it(
    migrated_database: str, installation: Installation, receiver: Receiver
) -> None:
    scene = Scene(migrated_database, receiver)
    scene.open()
    daemon = installation.start(scene.url)
    scene.subscribe(daemon)
    assert daemon.stop() == 0

    last_partition_is(scene, 0)
    on_the_last_day = scene.emit()
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="have no partition: the daemon makes") as e:
        last_partition_is(scene, -2)
        scene.emit()
    assert e.value.diag.message_hint == "Start the daemon, or run: dealix migrate"

    # The day of that event went with its partition; its delivery did not.
    daemon = installation.start(scene.url)
    after = scene.emit()
    receipts = receiver.wait_for(1)
    assert [r.event_id for r in receipts] == [after]
    today = datetime.now(UTC).date()
    attached = {name for (name,) in scene.rows(ATTACHED)}
    assert {f"events_{today + timedelta(days=n):%Y%m%d}" for n in (0, 1, 2)} <= attached
    scene.rows("DELETE FROM ledger WHERE event_id = %s", [on_the_last_day])
    oracle.wait_until_done(scene, within_s=10)
    assert scene.rows("SELECT outcome FROM dealix.attempts WHERE event_id = %s", [on_the_last_day]) == [("expired",)]
    assert daemon.stop() == 0
