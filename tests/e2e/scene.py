"""Customers with their endpoints, and the application's database: everything around the daemons of one test."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx
import psycopg
from psycopg.abc import QueryNoTemplate

from tests.e2e.traffic import Receiver
from tests.support.daemon_process import DaemonProcess

OPS_KEY: Final = "dlx_" + "k" * 43
API_S: Final = 10.0
LEDGER: Final = """
    CREATE TABLE IF NOT EXISTS ledger (
        event_id text PRIMARY KEY, customer_id text NOT NULL, event_type text NOT NULL, matched integer NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class Subscribed:
    """One subscription. Its endpoint is known to the receiver by `name`. Without `events` it wants all types.

    One that is not `healthy` fails or is disabled at times, and is the only one of its customer: what an event matched
    then tells whether it was disabled.
    """

    id: str
    name: str
    customer_id: str
    events: tuple[str, ...]
    healthy: bool = True


@dataclass(frozen=True, slots=True)
class Silence:
    """A subscription was disabled or deleted: the API said so at `since`, and it came back at `until`."""

    name: str
    since: float
    until: float = math.inf


@dataclass
class Scene:
    """`url` is the database, `receiver` answers for all endpoints. A test subscribes and emits through it.

    `clocks`: by how many seconds a daemon's clock is ahead of the receiver's, every difference that a test makes.
    `thawed`: how many daemons went on after they had been frozen.
    """

    url: str
    receiver: Receiver
    subscribed: list[Subscribed] = field(default_factory=list[Subscribed])
    silences: list[Silence] = field(default_factory=list[Silence])
    clocks: list[float] = field(default_factory=lambda: [0.0])
    thawed: int = 0

    def open(self) -> None:
        """The application's ledger and an ops key. The schema must be there."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(LEDGER)
            connection.execute(
                "INSERT INTO dealix.api_keys (id, digest) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                [f"key_{'0' * 24}", hashlib.sha256(OPS_KEY.encode()).digest()],
            )

    # -- through the API --------------------------------------------------------------------------------------------

    def subscribe(
        self,
        daemon: DaemonProcess,
        customer_id: str = "acme",
        *,
        events: Sequence[str] = (),
        status: int | str = 200,
        delay_ms: int = 3,
        healthy: bool = True,
    ) -> Subscribed:
        """A new subscription, registered as a customer does it; the receiver learns its secret."""
        name = f"s{len(self.subscribed) + 1}"
        asked = {
            "customer_id": customer_id,
            "endpoint_url": self.receiver.url(name, status=status, delay_ms=delay_ms),
            "events": list(events),
        }
        answer = httpx.post(f"{daemon.api}/api/v1/ecosystem/webhooks", json=asked, headers=AUTHORIZED, timeout=API_S)
        assert answer.status_code == 201, answer.text
        self.receiver.tell(name, secret=answer.json()["secret"])
        made = Subscribed(answer.json()["id"], name, customer_id, tuple(events), healthy)
        self.subscribed.append(made)
        return made

    def switch(self, daemon: DaemonProcess, subscribed: Subscribed, *, enabled: bool) -> None:
        """Disable a subscription, or enable it again: in between it is silent."""
        url = f"{daemon.api}/api/v1/ecosystem/webhooks/{subscribed.id}"
        asked_at = time.monotonic()
        answer = httpx.patch(url, json={"enabled": enabled}, headers=AUTHORIZED, timeout=API_S)
        assert answer.status_code == 200, answer.text
        if not enabled:
            self.silences.append(Silence(subscribed.name, time.monotonic()))
            return
        (index,) = [n for n, s in enumerate(self.silences) if s.name == subscribed.name and s.until == math.inf]
        self.silences[index] = replace(self.silences[index], until=asked_at)

    # -- in SQL -----------------------------------------------------------------------------------------------------

    def rows(self, statement: QueryNoTemplate, params: Sequence[object] | Mapping[str, object] = ()) -> list[Any]:
        """What a query answers."""
        with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement, params)
            return cursor.fetchall() if cursor.description else []

    def emit(self, customer_id: str = "acme", event_type: str = "deal.won", data: dict[str, int] | None = None) -> str:
        """One event, committed and in the ledger; its id."""
        return self.rows(EMIT, (customer_id, event_type, json.dumps(data or {"n": 1}), customer_id, event_type))[0][0]

    def claims(self, shards: Iterable[int] = range(64)) -> set[tuple[str, str, int]]:
        """What is claimed at this moment, in these shards: event, endpoint's name, attempt."""
        names = {s.id: s.name for s in self.subscribed}
        rows = self.rows(
            "SELECT event_id, subscription_id, attempt FROM dealix.deliveries WHERE claimed AND shard = ANY (%s)",
            [list(shards)],
        )
        return {(event_id, names[subscription_id], attempt) for event_id, subscription_id, attempt in rows}

    def sessions(self, name: str = "dealix%") -> list[int]:
        """Backends of the daemons' sessions whose application_name is like `name`."""
        rows = self.rows(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE %s", [name]
        )
        return [pid for (pid,) in rows]


AUTHORIZED: Final = {"Authorization": f"Bearer {OPS_KEY}"}
EMIT: Final = """
    WITH emitted AS (SELECT * FROM dealix.emit(%s, %s, %s::text))
    INSERT INTO ledger SELECT event_id, %s, %s, matched FROM emitted RETURNING event_id
"""
