"""The one writer of results: takes attempts off a bounded channel and records them in batches.

Alone a result costs some 225 µs, in a batch of a hundred 5 (docs/decisions.md); so it gathers for a moment, longer
the less there is to do. A batch stays in hand until it is recorded: a database outage fills the channel, the senders
wait, and nothing more is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from daemon.errors import BatchRefused, DatabaseUnavailable
from daemon.log import get
from daemon.model import AttemptRecord
from daemon.store import record as store
from daemon.store.pool import Pool
from daemon.store.record import Health

log = get("recorder")

BATCH: Final = 500
CAPACITY: Final = 1000
"""Results on the channel. Full, senders wait: more in flight than this has no use."""
BACKLOG: Final = 600
"""Results waiting, above which nothing more is claimed."""
LINGER_S: Final = 0.004
"""How long the first result of a batch waits for company: well under what a customer notices, and under load the
batch before it takes longer anyway."""
ENOUGH: Final = 50
"""With so many waiting already, a batch does not wait for more."""
QUERY_S: Final = 10.0
LAST_WRITE_S: Final = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


class Recorder:
    """See the module's text. Whoever sets `on_recorded` is told of each batch, and what the database made of it."""

    def __init__(self, pool: Pool, *, disable_after: int) -> None:
        self._pool = pool
        self._disable_after = disable_after
        self._send, self._receive = trio.open_memory_channel[AttemptRecord](CAPACITY)
        self.is_stuck = False
        """Whether the database takes no results at present; reads, and even claims, may still succeed (a full disk)."""
        self.on_recorded: Callable[[Sequence[AttemptRecord], Sequence[Health]], None] = lambda _batch, _health: None

    async def put(self, record: AttemptRecord) -> None:
        """Hand over a result; waits while the channel is full."""
        try:
            self._send.send_nowait(record)  # spares the checkpoint in the usual case
        except trio.WouldBlock:
            await self._send.send(record)

    def is_behind(self) -> bool:
        """Whether nothing more should be claimed: so much waits to be recorded, or the database takes no results."""
        return self.is_stuck or self.waiting() > BACKLOG

    def waiting(self) -> int:
        """Results on the channel."""
        return self._send.statistics().current_buffer_used

    def close(self) -> None:
        """No more results will come: `run` writes what it has and returns."""
        self._send.close()

    async def run(self) -> None:
        """Record until closed. Runs on while the rest is being cancelled; only its own deadline ends it."""
        async for first in self._receive:
            batch = [first]
            await self._gather(batch)
            with trio.CancelScope(shield=True):
                await self._record(batch)

    async def _gather(self, batch: list[AttemptRecord]) -> None:
        if self._send.statistics().current_buffer_used < ENOUGH:
            await trio.sleep(LINGER_S)
        while len(batch) < BATCH:
            try:
                batch.append(self._receive.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                return

    async def _record(self, batch: Sequence[AttemptRecord]) -> None:
        again = False
        pause_s = FIRST_PAUSE_S
        deadline = float("inf")
        while True:
            try:
                health = await self._write(batch, again=again)
            except DatabaseUnavailable as e:
                again = self.is_stuck = True
                if self._send_is_closed() and deadline == float("inf"):
                    deadline = trio.current_time() + LAST_WRITE_S
                if trio.current_time() > deadline:
                    log.warning("results.lost", count=len(batch), error=str(e), next="they will be sent again")
                    return
                log.warning("results.waiting_for_database", count=len(batch), error=str(e), retry_in_s=pause_s)
                await trio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            except BatchRefused as e:
                self.is_stuck = False
                await self._refused(batch, e)
                return
            else:
                self.is_stuck = False
                self.on_recorded(batch, health)
                return

    async def _refused(self, batch: Sequence[AttemptRecord], error: BatchRefused) -> None:
        """The database does not take this batch as it is: a bug. One bad row must not cost the others."""
        if len(batch) > 1:
            for record in batch:
                await self._record([record])
        else:
            log.error("result.refused", attempt_id=batch[0].id, error=str(error))
            self.on_recorded(batch, [])

    async def _write(self, batch: Sequence[AttemptRecord], *, again: bool) -> list[Health]:
        write = store.record_again if again else store.record
        async with self._pool.connection(QUERY_S) as conn:
            return await write(conn, batch, disable_after=self._disable_after)

    def _send_is_closed(self) -> bool:
        return self._receive.statistics().open_send_channels == 0
