"""What an operator wants to know at a glance, of all daemons together: cold reads, each bounded. Nothing is locked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from daemon import clock, ids
from daemon.ids import CustomerId, SubscriptionId
from daemon.store.connection import Connection
from daemon.store.deliveries import id_at
from daemon.store.shards import MEMBER_CLASS, OWN_CLASS

RATE_S: Final = 10.0
"""Throughput is of the last ten seconds: 40,000 rows at the most that one machine does."""
SAMPLE: Final = 5000
SAMPLE_S: Final = 300.0
"""The slowest endpoints are those of the newest attempts, at most five minutes old."""
COUNTED: Final = 10_000
"""Queues are counted as far as this; a longer one is shown as "more than"."""
LISTED: Final = 20


@dataclass(frozen=True, slots=True)
class Queues:
    """Deliveries by state, each count at most COUNTED + 1. `lag_s` is how long the oldest due one has been due."""

    outbox: int
    due: int
    in_flight: int
    held: int
    lag_s: float


@dataclass(frozen=True, slots=True)
class Rate:
    """Attempts a second, and the share (0–1) of them that delivered; None where there was none."""

    per_s: float
    success: float | None


@dataclass(frozen=True, slots=True)
class SlowEndpoint:
    """An endpoint among the newest attempts; durations in milliseconds."""

    subscription_id: SubscriptionId
    customer_id: CustomerId
    endpoint_url: str
    attempts: int
    failed: int
    average_ms: float
    longest_ms: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """A subscription that was disabled, not by its owner, or has an open breaker."""

    subscription_id: SubscriptionId
    customer_id: CustomerId
    endpoint_url: str
    kind: Literal["disabled", "breaker"]
    reason: str | None
    consecutive_failures: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Replica:
    """A daemon's owning session. `address` is None on a unix socket."""

    pid: int
    address: str | None
    since: datetime
    seen_at: datetime
    shards: int


@dataclass(frozen=True, slots=True)
class Server:
    """The database server. `oldest_transaction_s` is of any session; `notify_queue` is a share, 0–1."""

    version: str
    size_bytes: int
    connections: int
    max_connections: int
    notify_queue: float
    oldest_transaction_s: float


# Primary key of the outbox; indexes deliveries_due and deliveries_held. Counts end at their limit. The oldest due of
# each shard is one probe of deliveries_due.
_QUEUES: Final = """
    SELECT (SELECT count(*) FROM (SELECT FROM dealix.outbox LIMIT %(limit)s) AS o),
           (SELECT count(*) FROM (SELECT FROM dealix.deliveries
                                  WHERE shard BETWEEN 0 AND 63 AND due <= now() LIMIT %(limit)s) AS d),
           (SELECT count(*) FROM (SELECT FROM dealix.deliveries
                                  WHERE shard BETWEEN 0 AND 63 AND due > now() AND due <= now() + interval '60 s'
                                    AND claimed
                                  LIMIT %(limit)s) AS f),
           (SELECT count(*) FROM (SELECT FROM dealix.deliveries WHERE due IS NULL LIMIT %(limit)s) AS h),
           (SELECT coalesce(extract(epoch FROM now() - min(oldest.due)), 0)::float8
            FROM generate_series(0, 63) AS shard
            CROSS JOIN LATERAL (SELECT d.due FROM dealix.deliveries d
                                WHERE d.shard = shard AND d.due IS NOT NULL ORDER BY d.due LIMIT 1) AS oldest)
"""


async def queues(conn: Connection) -> Queues:
    """How much waits, and for how long."""
    (row,) = await (await conn.execute(_QUEUES, {"limit": COUNTED + 1})).fetchall()
    return Queues(*row[:4], lag_s=max(row[4], 0.0))


# Index attempts_id: ids begin with the millisecond. One partition, at midnight two.
_RATE: Final = """
    SELECT count(*), count(*) FILTER (WHERE success)
    FROM dealix.attempts
    WHERE id >= %(first)s AND created_at >= %(low)s AND created_at < %(high)s
"""


async def rate(conn: Connection) -> Rate:
    """How much is attempted at the moment."""
    cursor = await conn.execute(_RATE, _since(RATE_S), prepare=False)
    (row,) = await cursor.fetchall()
    return Rate(row[0] / RATE_S, row[1] / row[0] if row[0] else None)


# As above, walked backwards for SAMPLE rows.
_SLOWEST: Final = """
    SELECT subscription_id, customer_id, endpoint_url, count(*), count(*) FILTER (WHERE NOT success),
           avg(duration_ms)::float8, max(duration_ms)
    FROM (SELECT subscription_id, customer_id, endpoint_url, success, duration_ms
          FROM dealix.attempts
          WHERE id >= %(first)s AND created_at >= %(low)s AND created_at < %(high)s AND duration_ms IS NOT NULL
          ORDER BY id DESC
          LIMIT %(sample)s) AS newest
    GROUP BY subscription_id, customer_id, endpoint_url
    ORDER BY avg(duration_ms) DESC
    LIMIT %(listed)s
"""


async def slowest(conn: Connection) -> list[SlowEndpoint]:
    """The endpoints that take longest at the moment, the slowest first."""
    cursor = await conn.execute(_SLOWEST, _since(SAMPLE_S) | {"sample": SAMPLE, "listed": LISTED}, prepare=False)
    return [SlowEndpoint(*row) for row in await cursor.fetchall()]


def _since(seconds: float) -> dict[str, object]:
    now = clock.now()
    low = now - timedelta(seconds=seconds)
    return {"first": id_at(low), "low": low - timedelta(seconds=1), "high": now + timedelta(hours=1)}


# Walks both tables: 30 ms for 100,000 subscriptions, and only while an operator looks.
_TROUBLES: Final = """
    (SELECT s.id, s.customer_id, s.endpoint_url, 'disabled', s.disabled_reason, h.consecutive_failures, s.updated_at
     FROM dealix.subscriptions s
     JOIN dealix.subscription_health h ON h.subscription_id = s.id
     WHERE NOT s.enabled AND s.disabled_reason <> 'requested'
     ORDER BY s.updated_at DESC
     LIMIT %(listed)s)
    UNION ALL
    (SELECT s.id, s.customer_id, s.endpoint_url, 'breaker', NULL, h.consecutive_failures, h.last_delivery_at
     FROM dealix.subscription_health h
     JOIN dealix.subscriptions s ON s.id = h.subscription_id
     WHERE h.circuit = 'open' AND s.enabled
     ORDER BY h.last_delivery_at DESC NULLS LAST
     LIMIT %(listed)s)
"""


async def troubles(conn: Connection) -> list[Trouble]:
    """Subscriptions that get nothing at the moment though they want something: the latest of each kind."""
    cursor = await conn.execute(_TROUBLES, {"listed": LISTED})
    return [Trouble(*row) for row in await cursor.fetchall()]


# Walks both tables, as _TROUBLES does, and joins only what is open.
_STANDINGS: Final = """
    SELECT coalesce(disabled_reason, 'enabled'), count(*)
    FROM dealix.subscriptions
    GROUP BY 1
    UNION ALL
    SELECT CASE WHEN h.reopen_at <= now() THEN 'half_open' ELSE 'open' END, count(*)
    FROM dealix.subscription_health h
    JOIN dealix.subscriptions s ON s.id = h.subscription_id
    WHERE h.circuit = 'open' AND s.enabled
    GROUP BY 1
"""


async def standings(conn: Connection) -> dict[str, int]:
    """How many subscriptions are enabled, and of them by circuit (open, half_open); how many are not, by reason."""
    return dict(await (await conn.execute(_STANDINGS)).fetchall())


# As shards._CENSUS. Other roles' sessions show no times to a role without pg_read_all_stats: those are left out.
_REPLICAS: Final = """
    SELECT l.pid, host(a.client_addr), a.backend_start, a.state_change,
           count(*) FILTER (WHERE l.classid::bigint = %(own)s)::integer
    FROM pg_locks l
    JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.classid::bigint IN (%(own)s, %(member)s) AND a.backend_start IS NOT NULL
    GROUP BY l.pid, a.client_addr, a.backend_start, a.state_change
    ORDER BY a.backend_start
"""


async def replicas(conn: Connection) -> list[Replica]:
    """Every daemon that shares the work, the oldest first."""
    cursor = await conn.execute(_REPLICAS, {"own": OWN_CLASS, "member": MEMBER_CLASS})
    return [Replica(*row) for row in await cursor.fetchall()]


_SERVER: Final = """
    SELECT current_setting('server_version'), pg_database_size(current_database()),
           (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()),
           current_setting('max_connections')::integer, pg_notification_queue_usage(),
           (SELECT coalesce(max(extract(epoch FROM now() - xact_start)), 0)::float8
            FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
              AND backend_type = 'client backend')
"""


async def server(conn: Connection) -> Server:
    """The database server that the daemons are on."""
    (row,) = await (await conn.execute(_SERVER)).fetchall()
    return Server(*row)


# Primary key of the outbox: the oldest row of each shard.
_OLDEST_OUTBOX: Final = """
    SELECT oldest.event_id
    FROM generate_series(0, 63) AS shard
    CROSS JOIN LATERAL (SELECT o.event_id FROM dealix.outbox o WHERE o.shard = shard ORDER BY o.id LIMIT 1) AS oldest
"""


async def outbox_age_s(conn: Connection) -> float:
    """How long the oldest event that was not yet fanned out has waited, as far as the ids tell; 0 for none."""
    rows = await (await conn.execute(_OLDEST_OUTBOX)).fetchall()
    times = [ids.time_of(event_id) for (event_id,) in rows if ids.GENERATED_EVENT_ID.fullmatch(event_id)]
    return max((clock.now() - min(times)).total_seconds(), 0.0) if times else 0.0
