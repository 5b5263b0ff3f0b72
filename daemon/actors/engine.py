"""The delivery engine as a whole: makes the actors, starts them in order, and stops them in the opposite one.

recorder             stops last: when no sender is left, it writes what it has
  lanes, roster      actors drain: at most 25 s
  ownership          gives up a shard when nothing of it is in memory any more
    fanout, schedule, recovery, intake, janitor
      `work`         what the caller does meanwhile, the API; when it returns, everything stops
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from config.settings import Settings
from daemon.actors.claiming import Claiming
from daemon.actors.fanout import Fanout
from daemon.actors.fence import Fence
from daemon.actors.intake import Intake
from daemon.actors.janitor import Janitor, close_unused, summarise, watch_notify_queue
from daemon.actors.lanes import Lanes
from daemon.actors.ownership import Ownership
from daemon.actors.recorder import Recorder
from daemon.actors.recovery import Recovery
from daemon.actors.roster import Roster
from daemon.actors.schedule import Schedule
from daemon.actors.supervise import keep
from daemon.actors.testfire import TestFire
from daemon.actors.tools import Tools
from daemon.actors.vitals import Vitals, measure_loop_lag
from daemon.log import get
from daemon.model import AttemptRecord, Readiness
from daemon.observe import Observer
from daemon.sealing import KeyRing
from daemon.sender.endpoint import Sender
from daemon.store.connection import Connection
from daemon.store.pool import Pool
from daemon.store.record import Health
from daemon.tracing import Tracer

log = get("engine")

DRAIN_S: Final = 25.0
"""At a stop: how long requests in flight may take to end and be recorded."""
START_S: Final = 0.02


class Engine:
    """`pool` is for the actors' queries, `api_pool` for test-fires, `open_session` makes the dedicated connection.

    `open_janitor` makes a session of its own for so many seconds.

    `ca_file` (PEM): authorities that are trusted beside the system's. `tracer` is there where traces are on.
    """

    def __init__(  # noqa: PLR0913 - what the composition root has made
        self,
        settings: Settings,
        ring: KeyRing,
        pool: Pool,
        api_pool: Pool,
        open_session: Callable[[], AbstractAsyncContextManager[Connection]],
        *,
        open_janitor: Callable[[float], AbstractAsyncContextManager[Connection]],
        ca_file: Path | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        delivery, egress = settings.delivery, settings.egress
        self.sender = Sender(
            timeout_s=delivery.timeout_s,
            allow_localhost=egress.allow_localhost,
            allow_networks=egress.allow_networks,
            proxy_url=egress.proxy_url,
            ca_file=ca_file,
        )
        self._pools = {"engine": pool, "api": api_pool}
        self.observer = Observer(log_all=settings.log.attempts == "all")
        self.lanes = Lanes(max_in_flight=delivery.max_in_flight, max_slow=delivery.max_slow)
        self.recorder = Recorder(pool, disable_after=delivery.disable_after)
        fence = Fence()
        tools = Tools(settings, ring, self.sender, self.lanes, fence, self.recorder, self.observer, tracer)
        self.roster = Roster(pool, tools)
        self.recorder.on_recorded = self._recorded
        self.ownership = Ownership(open_session, fence, self.roster, ring)
        claiming = Claiming(pool, self.ownership, self.roster, self.lanes, self.recorder)
        self.test_fire = TestFire(api_pool, tools)
        self._roles: dict[str, Callable[[], Awaitable[None]]] = {
            "fanout": Fanout(claiming, self.ownership, self.observer.counts.fanned_out, tracer).run,
            "schedule": Schedule(claiming, pool, self.ownership, self.roster).run,
            "recovery": Recovery(claiming, self.ownership, self.roster).run,
            "janitor": Janitor(open_janitor, retention_days=settings.retention.days).run,
            "notify queue": partial(watch_notify_queue, pool),
        }
        if settings.intake.raw_notify:
            self.ownership.intake = Intake(pool, fence, self.observer.counts, self.ownership.outbox_bell)
            self._roles["intake"] = self.ownership.intake.run

    def readiness(self) -> Readiness:
        """What is up at this moment."""
        return Readiness(listening=self.ownership.listening, shards=len(self.ownership.shards))

    def vitals(self) -> Vitals:
        """How this daemon is at this moment."""
        subscriptions, claims = self.roster.counts()
        return Vitals(
            counts=self.observer.counts,
            lanes=self.lanes.use(),
            gate_waiting=self.lanes.gate.waiting(),
            subscriptions=subscriptions,
            claims=claims,
            mailboxes=self.roster.waiting(),
            event_bytes=self.roster.ledger.data_bytes,
            results_waiting=self.recorder.waiting(),
            is_recording=not self.recorder.is_stuck,
            pools={name: pool.statistics() for name, pool in self._pools.items()},
            is_listening=self.ownership.listening,
            shards=len(self.ownership.shards),
            members=self.ownership.members,
        )

    def _recorded(self, batch: Sequence[AttemptRecord], health: Sequence[Health]) -> None:
        self.observer.counts.recorded.add(len(batch))
        self.roster.recorded(batch, health)

    async def listening(self) -> None:
        """Wait until the dedicated session is up and listens."""
        while not self.ownership.listening:  # noqa: ASYNC110 - once in a process' life
            await trio.sleep(START_S)

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Deliver until `work` returns, then stop: nothing in flight is cut off, nothing sent goes unrecorded."""
        if self.ownership.intake is not None:
            log.warning(
                "raw_notify.open",
                note="any role that can connect to this database can emit for every customer",
                switch_off="intake.raw_notify = false",
            )
        async with trio.open_nursery() as recording:
            recording.start_soon(self.recorder.run)
            try:
                await self._deliver(work)
            finally:
                self.recorder.close()
        await self.sender.aclose()

    async def _deliver(self, work: Callable[[], Awaitable[None]]) -> None:
        async with trio.open_nursery() as delivering:
            delivering.start_soon(keep, "lanes", self.lanes.run)
            await delivering.start(self.roster.run)
            delivering.start_soon(keep, "ownership", self.ownership.run)
            async with trio.open_nursery() as intake:
                for role, run in self._roles.items():
                    intake.start_soon(keep, role, run)
                intake.start_soon(close_unused, self.sender)
                intake.start_soon(summarise, self.observer.counts, self.roster, self.lanes)
                intake.start_soon(measure_loop_lag, self.observer.counts.loop_lag_s)
                await work()
                intake.cancel_scope.cancel()
            with trio.move_on_after(DRAIN_S):
                await self.ownership.stop()
                await self.roster.quiet()  # without a database shards are lost, not drained, and requests still go on
            delivering.cancel_scope.cancel()
