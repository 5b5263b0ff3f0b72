"""Housekeeping: partitions ahead, retention behind, and a summary line for the log."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Final

import trio

from daemon import clock
from daemon.actors.lanes import Lanes
from daemon.actors.roster import Roster
from daemon.log import get
from daemon.observe import Counts
from daemon.sender.endpoint import Sender
from daemon.store import partitions
from daemon.store.connection import Connection
from daemon.store.pool import Pool
from daemon.store.shards import notify_queue_usage

log = get("janitor")

DAYS_AHEAD: Final = 90
"""Emits fail where a day has no partition; so far ahead a daemon may be down."""
STATS_DAYS: Final = 400
ROUND_S: Final = 3600.0
START_S: Final = 10.0
"""Before the first round. The start itself has made the next days' partitions; 90 days' cost a second or two of a core,
and what has waited for the daemon goes first."""
UNUSED_LOOK_S: Final = 15.0
SUMMARY_S: Final = 60.0
NOTIFY_LOOK_S: Final = 60.0
NOTIFY_FULL: Final = 0.1
"""Share of the NOTIFY queue from which on it is said. From 0.5 emits send no wake-ups, at 1 every NOTIFY fails."""
QUERY_S: Final = 5.0
ROUND_DEADLINE_S: Final = 1800.0


class Janitor:
    """One an installation would do; each replica runs one, and they take turns by an advisory lock in the store.

    `open_session`: a session of its own for so many seconds, since that lock and its settings are a session's.
    """

    def __init__(
        self, open_session: Callable[[float], AbstractAsyncContextManager[Connection]], *, retention_days: int
    ) -> None:
        self._open_session = open_session
        self._retention_days = retention_days

    async def run(self) -> None:
        """A round soon after the start and then every hour."""
        await trio.sleep(START_S)
        while True:
            async with self._open_session(ROUND_DEADLINE_S) as conn:
                made = await partitions.make_ahead(conn, days=DAYS_AHEAD)
                oldest = (clock.now() - timedelta(days=self._retention_days)).date()
                retired = await partitions.drop_before(conn, oldest)
                await partitions.drop_stats_before(conn, (clock.now() - timedelta(days=STATS_DAYS)).date())
            if made or retired.dropped or retired.expired:
                log.info("partitions.kept", made=made, dropped=retired.dropped, expired=retired.expired)
            await trio.sleep(ROUND_S)


async def close_unused(sender: Sender) -> None:
    """Close connections that have been idle too long. Every POST does so too; this is for when there is none."""
    while True:
        await trio.sleep(UNUSED_LOOK_S)
        sender.drop_expired()


async def summarise(counts: Counts, roster: Roster, lanes: Lanes) -> None:
    """A line a minute: how many attempts of each outcome since the last one; silent while there were none."""
    before: dict[str, int] = {}
    while True:
        await trio.sleep(SUMMARY_S)
        now = dict(counts.attempts)
        new = {outcome: count - before.get(outcome, 0) for outcome, count in now.items()}
        before = now
        if any(new.values()):
            actors, claims = roster.counts()
            log.info(
                "attempts.counted",
                period_s=int(SUMMARY_S),
                active=actors,
                in_memory=claims,
                in_flight=lanes.in_flight(),
                **{k: v for k, v in new.items() if v},
            )


async def watch_notify_queue(pool: Pool) -> None:
    """Say once a minute that the NOTIFY queue fills. It is empty unless somebody who LISTENs stays in a transaction."""
    while True:
        async with pool.connection(QUERY_S) as conn:
            usage = await notify_queue_usage(conn)
        if usage >= NOTIFY_FULL:
            log.warning(
                "notify_queue.filling",
                usage=round(usage, 3),
                cause="a session of this Postgres that has run LISTEN stays in a transaction",
            )
        await trio.sleep(NOTIFY_LOOK_S)
