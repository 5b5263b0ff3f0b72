"""Events that come by raw NOTIFY dealix_emit: checked here, inserted in batches by the owner of the customer's shard.

Every daemon hears every message; only the owner of the shard takes it. A message is worth no more than its sender's
right to connect, which the documentation says and the start logs.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import trio
from msgspec import Meta

from daemon.actors.doorbell import Doorbell
from daemon.actors.fence import Fence
from daemon.errors import DatabaseUnavailable
from daemon.log import get
from daemon.observe import Counts
from daemon.store.pool import Pool
from daemon.store.raw import emit_raw
from daemon.store.shards import shard_of

log = get("intake")

CAPACITY: Final = 10_000
"""Messages in hand, at most 80 MB of them; more are dropped and counted, since Postgres cannot be told to wait."""
BATCH: Final = 200
QUERY_S: Final = 10.0
COMPLAIN_S: Final = 10.0


# As daemon/ids.py has them, with msgspec's anchors. What the database could not even take (NUL, half a character)
# must not get as far as a batch, where it would cost the others their place.
_CustomerId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}\Z")]
_EventType = Annotated[str, Meta(pattern=r"^[a-z0-9_.]{1,128}\Z")]
_EventId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_:-]{1,128}\Z")]


class RawEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message's JSON. `payload` keeps its bytes."""

    customer_id: _CustomerId
    event_type: _EventType
    payload: msgspec.Raw
    event_id: _EventId | None = None


class Intake:
    """The raw NOTIFY reader of one daemon. Nothing that arrives stops it."""

    def __init__(self, pool: Pool, fence: Fence, counts: Counts, bell: Doorbell) -> None:
        self._pool = pool
        self._fence = fence
        self._counts = counts
        self._bell = bell
        self._send, self._receive = trio.open_memory_channel[RawEvent](CAPACITY)
        self._batch: list[RawEvent] = []
        self._silent_until = 0.0
        self._unsaid = 0

    def offer(self, payload: str) -> None:
        """A message came. Never waits, never raises for its content."""
        try:
            event = msgspec.json.decode(payload, type=RawEvent)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as e:
            self._refuse(str(e))
            return
        if shard_of(event.customer_id) not in self._fence.owned:
            return
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            self._refuse("more messages than can be taken in")

    async def run(self) -> None:
        """Insert what came, in batches. A batch that meets an outage is the first of the next run."""
        while True:
            if not self._batch:
                self._batch.append(await self._receive.receive())
            while len(self._batch) < BATCH:
                try:
                    self._batch.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            await self._insert()

    async def _insert(self) -> None:
        rows = [(e.customer_id, e.event_type, bytes(e.payload).decode(), e.event_id) for e in self._batch]
        try:
            async with self._pool.connection(QUERY_S) as conn:
                refused = await emit_raw(conn, rows)
        except DatabaseUnavailable:
            raise
        except BaseException:
            self._batch = []  # whatever it is about this batch, the next one shall not suffer from it
            raise
        self._batch = []
        for reason in refused:
            self._refuse(reason)
        self._bell.ring()

    def _refuse(self, reason: str) -> None:
        """Count it, and say so at most every 10 s: the sender may be hostile."""
        self._counts.raw_refused += 1
        self._unsaid += 1
        now = trio.current_time()
        if now >= self._silent_until:
            log.warning("raw_notify.refused", count=self._unsaid, reason=reason[:200])
            self._silent_until, self._unsaid = now + COMPLAIN_S, 0
