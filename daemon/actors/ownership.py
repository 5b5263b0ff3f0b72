"""Which shards are ours, and the proof that they still are. The one dedicated connection: locks and LISTEN.

Every 0.4 s a check runs on the very session that holds the locks. It proves that the session lives, so that nobody
else can own our shards; it brings news of changed subscriptions, with LISTEN dead too; and it counts the daemons, so
that shards move when one joins or leaves. A POST may start only within 0.9 s of the start of a check that succeeded
(the fence). That one rule keeps three promises: nothing starts more than a second after a disable, a daemon that was
frozen and comes back sends nothing that another took over, and a lost session stops us before its locks are granted
elsewhere (the server ends an idle session after 5 s, not sooner).

A shard that is given away is drained first: no more claims, mailboxes given back, requests in flight recorded, and
only then unlocked. So a daemon that joins causes no duplicate.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from daemon.actors.doorbell import Doorbell
from daemon.actors.fence import Fence
from daemon.actors.intake import Intake
from daemon.actors.roster import LEASE_S, Roster
from daemon.errors import DatabaseUnavailable
from daemon.log import get
from daemon.sealing import KeyRing
from daemon.store import queue, sealed
from daemon.store import shards as store
from daemon.store.connection import Connection
from daemon.store.shards import SHARDS

log = get("ownership")

CHECK_S: Final = 0.4
CHECK_DEADLINE_S: Final = 2.0
HEARTBEAT_S: Final = 2.0
"""LISTEN can die in silence (DISCARD ALL, a pooler): our own NOTIFY has to come back before the second one after it."""
SILENT_S: Final = 6.0
"""Another daemon whose session has been silent for so long is frozen, and the server did not end it after 5 s."""
NEWCOMER_S: Final = 4.0
"""A session that is younger may be one that has not joined yet."""
STOP_LOOK_S: Final = 0.02
BUSY_LOOK_S: Final = 0.1


class Ownership:
    """See the module's text. Others read `shards` and `listening` and wait at the bells and the fence."""

    def __init__(
        self,
        open_session: Callable[[], AbstractAsyncContextManager[Connection]],
        fence: Fence,
        roster: Roster,
        ring: KeyRing,
    ) -> None:
        self._open_session = open_session
        self._fence = fence
        self._roster = roster
        self._ring = ring
        self._shown_keys: list[bytes] = []
        self.intake: Intake | None = None
        self.outbox_bell = Doorbell()
        self.due_bell = Doorbell()
        self.shards: frozenset[int] = frozenset()
        self.listening = False
        self.members = 0
        self._stopping = False
        self._is_member = False
        self._token = secrets.token_hex(8)
        self._heard_at = 0.0
        self._busy: set[int] = set()
        self._wants_busy = False
        self._wait_scope: trio.CancelScope | None = None

    # -- what others ask --------------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether emitters were asked not to wake us: then looking is up to us."""
        return bool(self._busy)

    @property
    def term(self) -> int:
        """To be read together with `shards`, before a claim: see Fence."""
        return self._fence.term

    def keep_busy(self) -> None:
        """There is much to do: ask emitters not to wake us, until `rest`."""
        self._wants_busy = True
        if len(self._busy) < len(self.shards):
            self._nudge()

    def rest(self) -> None:
        """There is little to do: have emitters wake us again, within BUSY_LOOK_S. `is_busy` tells when."""
        self._wants_busy = False

    async def stop(self) -> None:
        """Take no more work, give back what is not in flight; returns when every shard is unlocked or lost."""
        self._stopping = True
        self._nudge()
        while self._fence.owned:  # noqa: ASYNC110 - once in a process' life
            await trio.sleep(STOP_LOOK_S)

    # -- the session ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hold a session; when it is lost, everything is lost, and a new one begins (the supervisor paces that)."""
        try:
            async with self._open_session() as conn:
                await self._begin(conn)
                while not (self._stopping and not self._fence.owned):
                    await self._turn(conn)
        except trio.TooSlowError:
            raise DatabaseUnavailable("the ownership session gave no answer in time") from None
        finally:
            self._lose()

    async def _begin(self, conn: Connection) -> None:
        with trio.fail_after(CHECK_DEADLINE_S):
            await store.listen(conn)
            self._shown_keys = []
            await self._show_keys(conn)
            if not self._stopping:
                await store.join(conn)
                self._is_member = True
        self.listening = True
        self._heard_at = trio.current_time()

    def _lose(self) -> None:
        """Ownership is gone: claim nothing more, give back what was not sent, let requests in flight end."""
        if self._fence.owned:
            log.warning("ownership.lost", shards=len(self._fence.owned))
        self.listening = False
        self._is_member = False
        self._fence.lost_all()
        self._busy.clear()
        self._set_shards()
        self._roster.give_back(range(SHARDS))

    async def _turn(self, conn: Connection) -> None:
        began = trio.current_time()
        with trio.fail_after(CHECK_DEADLINE_S):
            await self._check(conn, began)
            await self._balance(conn)
            await self._beat(conn)
            await self._show_keys(conn)
        until = began + CHECK_S
        while not self._stopping:
            with trio.fail_after(CHECK_DEADLINE_S):
                await self._update_busy(conn)
            left_s = max(until - trio.current_time(), 0.0)
            with trio.CancelScope() as self._wait_scope:
                await self._listen(conn, min(left_s, BUSY_LOOK_S) if self._busy else left_s)
            self._wait_scope = None
            # Asked last: where the checks alone take longer than the round, what has come is heard all the same.
            if trio.current_time() >= until:
                break
        if self._stopping:
            # A drain may take 25 s, and without our own heartbeat its shards would be given up after 4.
            await self._listen(conn, 0)
            await trio.sleep(0.01)

    async def _listen(self, conn: Connection, timeout_s: float) -> None:
        for notice in await conn.next_notifies(timeout_s):
            self._hear(notice.channel, notice.payload)

    def _nudge(self) -> None:
        if self._wait_scope is not None:
            self._wait_scope.cancel()

    async def _check(self, conn: Connection, began: float) -> None:
        versions = self._roster.versions()
        for subscription_id in await store.changed(conn, versions):
            self._roster.suspend([subscription_id])
            del versions[subscription_id]
        self._roster.confirm(versions, began)
        self._fence.checked(began)

    async def _beat(self, conn: Connection) -> None:
        now = trio.current_time()
        if now - self._heard_at > 2 * HEARTBEAT_S + CHECK_S:
            raise DatabaseUnavailable("LISTEN no longer hears this daemon's own heartbeat")
        if now - self._heard_at > HEARTBEAT_S:
            if not await store.heartbeat(conn, self._token):
                self._heard_at = now  # the queue is full: that proves nothing about LISTEN, and everybody polls
            if self.members > 1 and (ended := await store.end_silent(conn, silent_s=SILENT_S)):
                log.warning("ownership.silent_ended", sessions=len(ended))

    def _hear(self, channel: str, payload: str) -> None:
        if channel == store.WAKE:
            self.outbox_bell.ring()
        elif channel == store.DUE:
            self.due_bell.ring()
        elif channel == store.CONFIG:
            self._roster.suspend([payload])
        elif channel == store.HEARTBEAT:
            if payload == self._token:
                self._heard_at = trio.current_time()
        elif self.intake is not None:
            self.intake.offer(payload)

    async def _show_keys(self, conn: Connection) -> None:
        """Let a rotation see which sealing keys this daemon holds."""
        if (held := self._ring.key_ids) != self._shown_keys:
            await sealed.show(conn, held, shown=self._shown_keys)
            self._shown_keys = held

    # -- shares -----------------------------------------------------------------------------------------------------

    async def _balance(self, conn: Connection) -> None:
        await self._unlock_drained(conn)
        if self._stopping:
            await self._leave(conn)
            return
        census = await store.census(conn)
        if self._fence.owned - census.own:
            raise DatabaseUnavailable("the ownership session has lost its locks: is there a pooler before it?")
        self.members = max(census.members, 1)
        share = -(-SHARDS // self.members)
        if len(self.shards) > share:
            surplus = sorted(self.shards)[share:]
            self._drain(surplus)
            log.info("shards.giving_up", count=len(surplus), members=self.members)
        elif len(self.shards) < share:
            await self._gain(conn, sorted(set(range(SHARDS)) - census.taken)[: share - len(self.shards)])

    async def _leave(self, conn: Connection) -> None:
        """At a stop: no longer a member, so that others take over each shard as soon as it is drained."""
        if self._is_member:
            await store.leave(conn)
            self._is_member = False
        self._drain(self._fence.owned)

    def _drain(self, shards: Iterable[int]) -> None:
        self._fence.draining.update(shards)
        self._set_shards()
        self._roster.give_back(self._fence.draining)

    async def _gain(self, conn: Connection, free: list[int]) -> None:
        if not free:
            return
        if ended := await store.end_lockless(conn, newcomer_s=NEWCOMER_S):
            # Their daemons may send until their next check; told so by the end of the session, they are silent by ours.
            log.warning("ownership.lockless_ended", sessions=len(ended))
            return
        gained = await store.try_own(conn, free)
        if not gained:
            return
        # What is in memory from the last time these were ours, in flight or not recorded yet, is not up for others: its
        # leases may have ended while the database was away.
        own = self._roster.ledger.leases()
        await queue.extend_leases(conn, own, lease_s=LEASE_S)
        recovered = await store.recover(conn, gained, own=own, lease_s=LEASE_S)
        self._roster.refresh(gained)
        self._fence.owned.update(gained)
        self._set_shards()
        self.outbox_bell.ring()
        self.due_bell.ring()
        owned = len(self._fence.owned)
        log.info("shards.gained", count=len(gained), owned=owned, members=self.members, recovered=recovered)

    async def _unlock_drained(self, conn: Connection) -> None:
        done = {shard for shard in self._fence.draining if not self._roster.ledger.is_working(shard)}
        if done:
            await store.idle(conn, done & self._busy)
            await store.disown(conn, done)
            self._busy -= done
            self._fence.lost(done)

    def _set_shards(self) -> None:
        self.shards = frozenset(self._fence.owned - self._fence.draining)

    async def _update_busy(self, conn: Connection) -> None:
        if self._wants_busy:
            wanted = self.shards - self._busy
            if wanted:
                self._busy.update(await store.try_busy(conn, wanted))
        elif self._busy:
            await store.idle(conn, self._busy)
            self._busy.clear()
            # An emitter that probed while we were busy may commit only now, and did not ring.
            self.outbox_bell.ring()
