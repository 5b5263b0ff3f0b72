"""Events that come by raw NOTIFY dealix_emit: checked here, inserted in batches by the owner of the customer's shard.

Every daemon hears every message; only the owner of the shard takes it. A message is worth no more than its sender's
right to connect, which the documentation says and the start logs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio

from daemon.log import get
from daemon.store.raw import emit_raw
from daemon.store.shards import shard_of

if TYPE_CHECKING:
    from daemon.actors.doorbell import Doorbell
    from daemon.actors.fence import Fence
    from daemon.observe import Counts
    from daemon.store.pool import Pool

log = get("intake")

CAPACITY: Final = 10_000
"""Messages in hand, at most 80 MB of them; more are dropped and counted, since Postgres cannot be told to wait."""
BATCH: Final = 200
QUERY_S: Final = 10.0
COMPLAIN_S: Final = 10.0


class RawEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message's JSON. `payload` keeps its bytes."""

    customer_id: str
    event_type: str
    payload: msgspec.Raw
    event_id: str | None = None


class Intake:
    """The raw NOTIFY reader of one daemon. Nothing that arrives stops it."""

    def __init__(self, pool: Pool, fence: Fence, counts: Counts, bell: Doorbell) -> None:
        self._pool = pool
        self._fence = fence
        self._counts = counts
        self._bell = bell
        self._send, self._receive = trio.open_memory_channel[RawEvent](CAPACITY)
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
        """Insert what came, in batches."""
        async for first in self._receive:
            batch = [first]
            while len(batch) < BATCH:
                try:
                    batch.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            async with self._pool.connection(QUERY_S) as conn:
                refused = await emit_raw(
                    conn, [(e.customer_id, e.event_type, bytes(e.payload).decode(), e.event_id) for e in batch]
                )
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
