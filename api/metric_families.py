"""Every metric that the daemon exports: its name, what it means, and where its value stands.

Names follow Prometheus' conventions: base units, `_total` for what only grows. No label has more values than can be
listed here, and none names a customer, a subscription or a host.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from daemon.actors.vitals import Vitals
from daemon.observe import Histogram
from daemon.policy.retry import Result
from daemon.store.ops import Queues, Server

REASONS: Final = ("requested", "consecutive_failures", "gone", "secret_unreadable")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the database knows, of all daemons together. `standings`: see `ops.standings`."""

    queues: Queues
    outbox_age_s: float
    standings: Mapping[str, int]
    server: Server


class Families(Collector):
    """The metrics of one moment. `facts` is None while the database does not answer: its metrics are absent then."""

    def __init__(self, vitals: Vitals, facts: Facts | None, pool_size: int) -> None:
        self._vitals = vitals
        self._facts = facts
        self._pool_size = pool_size

    @override
    def collect(self) -> Iterator[Metric]:
        """All of them."""
        yield from self._standing()
        yield from self._attempts()
        yield from self._memory()
        yield from self._pools()
        if self._facts is not None:
            yield from _queues(self._facts)
            yield from _subscriptions(self._facts.standings)
            yield from _server(self._facts.server)
        yield from _process()

    def _standing(self) -> Iterator[Metric]:
        now = self._vitals
        ready = now.is_listening and self._facts is not None
        yield _by("dealix_build_info", "1; the label has the version.", "version", {_version(): 1})
        yield _gauge("dealix_ready", "1 while the database answers, its schema fits and LISTEN is up.", ready)
        yield _gauge("dealix_listening", "1 while the session is up that owns shards and LISTENs.", now.is_listening)
        yield _gauge("dealix_shards", "Shards, of 64, that this daemon works on.", now.shards)
        yield _gauge("dealix_members", "Daemons that share the shards, as this one counts them.", now.members)

    def _attempts(self) -> Iterator[Metric]:
        counts, lanes = self._vitals.counts, self._vitals.lanes
        yield _counter(
            "dealix_attempts_total",
            "Attempts that ended, test-fires too; failed, gone and exhausted end a delivery without success.",
            "outcome",
            {outcome: counts.of(outcome) for outcome in get_args(Result)},
        )
        yield _histogram(
            "dealix_attempt_duration_seconds", "Duration of one exchange, whatever its outcome.", counts.durations_s
        )
        yield _by(
            "dealix_requests_in_flight",
            "Requests that hold a place: wide up to a second, then slow.",
            "lane",
            {name: lane.taken for name, lane in lanes.items()},
        )
        yield _by(
            "dealix_requests_in_flight_limit",
            "Places of each lane: delivery.max_in_flight and delivery.max_slow.",
            "lane",
            {name: lane.places for name, lane in lanes.items()},
        )
        yield _by(
            "dealix_requests_waiting",
            "Requests that wait for a place in a lane, or for their turn at the CPU (gate).",
            "queue",
            {name: lane.waiting for name, lane in lanes.items()} | {"gate": self._vitals.gate_waiting},
        )

    def _memory(self) -> Iterator[Metric]:
        now, counts = self._vitals, self._vitals.counts
        yield _gauge("dealix_active_subscriptions", "Subscriptions with an actor in this daemon.", now.subscriptions)
        yield _gauge("dealix_claims", "Deliveries in this daemon's memory, until they are recorded.", now.claims)
        yield _gauge("dealix_mailbox_claims", "Claims that wait to be sent.", now.mailboxes)
        yield _gauge(
            "dealix_event_bytes", "Size of the claims' events; at 64 MiB no more are fetched.", now.event_bytes
        )
        yield _gauge("dealix_recorder_queue", "Results that wait to be recorded, at most 1000.", now.results_waiting)
        yield _gauge("dealix_recorder_up", "0 while the database takes no results.", now.is_recording)
        yield _histogram("dealix_recorder_batch_size", "Results in one write.", counts.recorded)
        yield _histogram("dealix_fanout_batch_size", "Outbox rows in a look that found any.", counts.fanned_out)
        yield _histogram(
            "dealix_event_loop_lag_seconds", "How late tasks run, looked at each 0.1 s.", counts.loop_lag_s
        )
        yield CounterMetricFamily(
            "dealix_raw_notify_refused_total", "Malformed NOTIFY dealix_emit messages.", counts.raw_refused
        )

    def _pools(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily(
            "dealix_pool_connections", "Connections of a pool, by what they do.", labels=["pool", "state"]
        )
        pools = self._vitals.pools
        for name, pool in pools.items():
            connections.add_metric([name, "used"], pool.open - pool.idle)
            connections.add_metric([name, "idle"], pool.idle)
        yield connections
        waiting = {name: pool.waiting for name, pool in pools.items()}
        yield _by("dealix_pool_waiting", "Tasks that wait for a connection.", "pool", waiting)
        yield _gauge("dealix_pool_size", "Connections that each pool may have: database.pool_size.", self._pool_size)


def _queues(facts: Facts) -> Iterator[Metric]:
    queues = facts.queues
    yield _gauge("dealix_outbox_events", "Events that wait for their fan-out; 10001 stands for more.", queues.outbox)
    yield _gauge("dealix_outbox_age_seconds", "How long the oldest of them has waited.", facts.outbox_age_s)
    yield _by(
        "dealix_deliveries",
        "Unfinished deliveries: due now, claimed by a daemon, or held for a subscription; 10001 stands for more.",
        "state",
        {"due": queues.due, "claimed": queues.in_flight, "held": queues.held},
    )
    yield _gauge("dealix_oldest_due_seconds", "How long the oldest due delivery has been due.", queues.lag_s)


def _subscriptions(standings: Mapping[str, int]) -> Iterator[Metric]:
    circuits = {name: standings.get(name, 0) for name in ("open", "half_open")}
    circuits["closed"] = max(standings.get("enabled", 0) - sum(circuits.values()), 0)
    yield _by("dealix_subscriptions_enabled", "Enabled subscriptions, by their circuit breaker.", "circuit", circuits)
    reasons = {name: standings.get(name, 0) for name in REASONS}
    yield _by("dealix_subscriptions_disabled", "Disabled subscriptions, by the reason.", "reason", reasons)


def _server(server: Server) -> Iterator[Metric]:
    yield _gauge("dealix_notify_queue_ratio", "How full the server's NOTIFY queue is, 0 to 1.", server.notify_queue)
    yield _gauge("dealix_database_size_bytes", "Size of the database.", server.size_bytes)
    yield _gauge("dealix_database_connections", "Sessions of everybody in this database.", server.connections)
    yield _gauge("dealix_database_connections_limit", "max_connections of the server.", server.max_connections)
    yield _gauge(
        "dealix_oldest_transaction_seconds", "Age of the oldest open transaction.", server.oldest_transaction_s
    )


def _process() -> Iterator[Metric]:
    """The usual ones. prometheus-client's own collector is empty where the service's sandbox hides /proc/stat."""
    yield CounterMetricFamily("process_cpu_seconds_total", "User and system CPU time.", time.process_time())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    yield _gauge("process_resident_memory_bytes", "Resident memory.", pages * resource.getpagesize())
    yield _gauge("process_open_fds", "Open file descriptors.", sum(1 for _ in Path("/proc/self/fd").iterdir()))
    yield _gauge("process_max_fds", "Most that may be open.", resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _version() -> str:
    try:
        return version("dealix-webhooks")
    except PackageNotFoundError:  # run from a checkout
        return "unreleased"


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value)


def _by(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counter(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _histogram(name: str, words: str, counted: Histogram) -> Metric:
    """Prometheus' buckets are cumulative."""
    total, buckets = 0, list[tuple[str, float]]()
    for bound, count in zip((*counted.bounds, "+Inf"), counted.counts, strict=True):
        total += count
        buckets.append((str(bound), total))
    return HistogramMetricFamily(name, words, buckets, counted.sum)
