"""`dealix listen` over a network that falls silent: nothing is closed, no error comes, half a minute later it is back.

What is emitted meanwhile has to arrive once each, in the order in which it became visible. A stream shows an event when
no transaction runs any more that began to write before the event's own. So that order is the one of transaction ids,
and within a transaction that of its emits: the book which this test keeps of its own transactions says all of it.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import psycopg
import pytest
import stripe
import trio
from standardwebhooks import Webhook

from tests.e2e.figures import Tell
from tests.support.command import running
from tests.support.daemon_process import Installation
from tests.support.network import network_to
from tests.support.receiver import Received, open_receiver

EVENTS: Final = 500
"""At least so many are committed in the silence."""
BEFORE: Final = 20
SESSIONS: Final = 8
TEXT: Final = "ä\u2028" * 400
"""Escaped, a body of 5 KB: 500 of them are more than the buffers of a connection hold."""
CAUGHT_UP_S: Final = 40.0
"""From the network's return. The client gives a silent connection up after 40 s, at most 10 s after the return."""
LIMIT_S: Final = 60.0
"""For all but the silence."""


class Transaction:
    """One of the application's, which has its id from its beginning on."""

    def __init__(self, application: Application, session: psycopg.Connection) -> None:
        self.session = session
        self._application = application
        ((self._xid,),) = session.execute("SELECT pg_current_xact_id()::text::bigint").fetchall()
        self._numbers: list[int] = []

    def emit(self) -> None:
        """One event, whose number is higher than all before it."""
        number = next(self._application.numbers)
        self.session.execute(
            "SELECT dealix.emit('acme', 'deal.won', %s::text)", [json.dumps({"n": number, "text": TEXT})]
        )
        self._numbers.append(number)

    def emit_and_undo(self) -> None:
        """An emit that is rolled back to a savepoint."""
        with suppress(ZeroDivisionError), self.session.transaction():
            self.emit()
            raise ZeroDivisionError
        self._application.undone.add(self._numbers.pop())

    def commit(self) -> None:
        self.session.commit()
        self._application.committed += [(self._xid, number) for number in self._numbers]

    def roll_back(self) -> None:
        self.session.rollback()
        self._application.undone.update(self._numbers)


class Application:
    """Emits in plain SQL, and keeps a book: what was `committed`, in the order of commits, and what was `undone`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.numbers = itertools.count()
        self.committed: list[tuple[int, int]] = []
        """Transaction and number of each event."""
        self.undone: set[int] = set()

    def begin(self) -> Transaction:
        return Transaction(self, psycopg.connect(self._url))

    def emit(self, count: int) -> None:
        """Each in a transaction of its own."""
        with psycopg.connect(self._url) as session:
            for _ in range(count):
                transaction = Transaction(self, session)
                transaction.emit()
                transaction.commit()

    def emit_interleaved(self, count: int, over_s: float) -> None:
        """Until so many more are committed: in transactions that begin, emit and end in three different orders."""
        chance = random.Random(7)
        sessions = [psycopg.connect(self._url) for _ in range(SESSIONS)]
        idle, running_now = list(sessions), list[Transaction]()
        wanted, began = len(self.committed) + count, time.monotonic()
        while len(self.committed) < wanted or running_now:
            emits = len(self.committed) < wanted
            if idle and emits and chance.random() < 0.3:
                running_now.append(Transaction(self, idle.pop()))
            elif running_now and emits and chance.random() < 0.75:
                transaction = chance.choice(running_now)
                (transaction.emit_and_undo if chance.random() < 0.1 else transaction.emit)()
                share_done = 1 - (wanted - len(self.committed)) / count
                time.sleep(max(0.0, min(0.1, began + share_done * over_s - time.monotonic())))
            elif running_now:
                transaction = running_now.pop(chance.randrange(len(running_now)))
                (transaction.roll_back if chance.random() < 0.2 else transaction.commit)()
                idle.append(transaction.session)
        for session in sessions:
            session.close()

    def in_order_of_visibility(self) -> list[int]:
        return [number for _, number in sorted(self.committed)]


@pytest.mark.parametrize(
    ("silent_s", "forgetful", "across"),
    [
        pytest.param(3, False, True, id="3 s"),
        pytest.param(30, False, True, id="30 s", marks=pytest.mark.chaos),
        pytest.param(30, False, False, id="30 s, buffers full", marks=pytest.mark.chaos),
        pytest.param(30, True, True, id="30 s, connections forgotten", marks=pytest.mark.chaos),
    ],
)
@pytest.mark.timeout(30 + LIMIT_S + 30)
async def test_events_of_a_silence_arrive_once_each_in_the_order_in_which_they_became_visible(
    migrated_database: str, installation: Installation, tell: Tell, silent_s: int, *, forgetful: bool, across: bool
) -> None:
    """`across`: one transaction more is open from before the silence until after it, and nothing overtakes it."""
    daemon = installation.start(migrated_database)
    key = installation.run("keys", "create", "--customer", "acme", database_url=migrated_database).out.strip()
    application = Application(migrated_database)
    with trio.fail_after(silent_s + LIMIT_S):
        async with (
            network_to(int(daemon.api.rpartition(":")[2])) as (network, url),
            open_receiver() as receiver,
            running("listen", "--forward-to", receiver.url("/hook"), "--api-url", url, DEALIX_API_KEY=key) as command,
        ):
            secret = (await command.line(r"signed with (whsec_\S+)$"))[1]
            await command.line("^Ready")
            application.emit(BEFORE)
            await receiver.wait_for(BEFORE)
            late = application.begin() if across else None
            if late:
                late.emit()
            network.fall_silent()
            back_at = trio.current_time() + silent_s
            await trio.to_thread.run_sync(application.emit_interleaved, EVENTS, 0.9 * silent_s)
            if late:
                late.emit()
            await trio.sleep_until(back_at)
            assert len(receiver.received) == BEFORE
            back_at = trio.current_time()
            network.come_back(forgetful=forgetful)
            if late:
                late.commit()
                late.session.close()
            expected = application.in_order_of_visibility()
            requests = await receiver.wait_for(len(expected), timeout_s=CAUGHT_UP_S)
            first_s, last_s = requests[BEFORE].at - back_at, requests[-1].at - back_at
            application.emit(1)  # behind all of these: whatever came twice would have come before it
            requests = await receiver.wait_for(len(expected) + 1)
    tell(
        f"{len(expected) - BEFORE} events in {silent_s} s of silence, {len(application.undone)} rolled back: "
        f"first {first_s:.2f} s, last {last_s:.2f} s after it; connected {network.tried} times"
    )
    assert [number_of(one) for one in requests] == application.in_order_of_visibility()
    assert len(expected) >= BEFORE + EVENTS
    assert (network.tried > 1) == (forgetful or not across), (
        "the connection is given up where it must be, and only there"
    )
    assert len(application.undone) > 50
    overtaken = sum(one > other for one, other in itertools.pairwise(application.committed))
    assert overtaken > 20, "hardly any transaction committed late: the test shows nothing"
    verify(requests, secret)
    assert daemon.stop() == 0


def verify(requests: Sequence[Received], secret: str) -> None:
    """By the official libraries of both formats."""
    for one in requests:
        text = one.body.decode()
        Webhook(secret).verify(text, one.headers)
        stripe.WebhookSignature.verify_header(text, one.headers["dealix-signature"], secret, 300)


def number_of(request: Received) -> int:
    return json.loads(request.body)["data"]["n"]
