"""The stream of events: what a client gets that is cut off, comes late, lags, or must not be there."""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import h11
import psycopg
import pytest
import trio

from api import listening as tails
from api.routes import event_stream
from daemon.ids import CustomerId
from daemon.store import listening
from tests.support.api import BASE, Served

PATH: Final = f"{BASE}/events/stream"


@dataclass
class Message:
    """One message, or a comment that moves the cursor on (`data` is None)."""

    id: str
    event: str | None
    data: dict[str, Any] | None


class Refused(Exception):
    """An answer that is no stream."""


class Client:
    """Reads a stream, and remembers what the next one has to begin with.

    Over a socket of its own: httpx leaves generators behind when it is stopped amid an answer.
    """

    def __init__(self, api: Served, who: str) -> None:
        self._port = api.port
        self._key = api.keys[who]
        self.last_id: str | None = None
        self.got: list[dict[str, Any]] = []

    @asynccontextmanager
    async def stream(self, **query: str | int) -> AsyncGenerator[Messages]:
        headers = [("Host", "here"), ("Authorization", f"Bearer {self._key}")]
        headers += [("Last-Event-ID", self.last_id)] if self.last_id else []
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as stream:
            protocol = h11.Connection(h11.CLIENT)
            request = h11.Request(method="GET", target=f"{PATH}?{urlencode(query)}", headers=headers)
            await stream.send_all((protocol.send(request) or b"") + (protocol.send(h11.EndOfMessage()) or b""))
            answer = await next_of(protocol, stream)
            assert isinstance(answer, h11.Response)
            if answer.status_code != 200:
                raise Refused(answer.status_code)
            assert (b"content-type", b"text/event-stream") in answer.headers
            assert (b"cache-control", b"no-store") in answer.headers
            yield Messages(self, protocol, stream)

    async def read(self, count: int, **query: str | int) -> list[dict[str, Any]]:
        """Connect, and read until `count` events were got in all."""
        async with self.stream(**query) as messages:
            async for _ in messages:
                if len(self.got) >= count:
                    break
        return self.got


class Messages:
    """The messages of one connection, one after the other."""

    def __init__(self, client: Client, protocol: h11.Connection, stream: trio.SocketStream) -> None:
        self._client = client
        self._protocol = protocol
        self._stream = stream
        self._blocks: list[bytes] = []
        self._rest = b""

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Message:
        while not self._blocks:
            came = await next_of(self._protocol, self._stream)
            if not isinstance(came, h11.Data):
                raise StopAsyncIteration
            *self._blocks, self._rest = (self._rest + bytes(came.data)).split(b"\n\n")
        lines = self._blocks.pop(0).split(b"\n")
        fields = dict(line.split(b": ", 1) for line in lines if not line.startswith(b":"))
        data = json.loads(fields[b"data"]) if b"data" in fields else None
        message = Message(fields[b"id"].decode(), fields.get(b"event", b"").decode() or None, data)
        self._client.last_id = message.id
        if data is not None:
            self._client.got.append(data)
        return message


async def next_of(protocol: h11.Connection, stream: trio.SocketStream) -> object:
    while (event := protocol.next_event()) is h11.NEED_DATA:
        protocol.receive_data(await stream.receive_some(65536))
    return event


async def started(client: Client, **query: str | int) -> None:
    """Take the first position, and go."""
    async with client.stream(**query) as messages:
        await anext(messages)


async def emit(api: Served, number: int, event_type: str = "deal.won", customer: str = "acme") -> str:
    body = {"customer_id": customer, "event_type": event_type, "payload": {"n": number}}
    return (await api.ops.post("/events/emit", body)).json()["event_id"]


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [json.loads(one["body"])["data"]["n"] for one in events]


async def test_a_stream_shows_what_endpoints_get_of_its_own_customer_from_now_on(api: Served) -> None:
    await emit(api, 1)
    client = Client(api, "acme")
    payload = '{"text": "a\\u2028b\u2028c",\n "n" :\r\n 2.50}'
    async with client.stream() as messages:
        await anext(messages)
        await api.run("SELECT dealix.emit('globex', 'deal.won', '{}')")
        await api.run(
            "SELECT dealix.emit('acme', 'deal.won', %(payload)s::text, event_id => 'order-7')", payload=payload
        )
        while (message := await anext(messages)).data is None:
            pass
    (shown,) = client.got
    ((created_at,),) = await api.rows(
        "SELECT floor(extract(epoch FROM created_at))::bigint FROM dealix.events WHERE id = 'order-7'"
    )
    assert (message.event, shown["event_type"], shown["event_id"], shown["customer_id"]) == (
        "deal.won", "deal.won", "order-7", "acme",
    )  # fmt: skip
    assert shown["body"] == (
        f'{{"api_version":"v1","customer_id":"acme","data":{payload},"id":"order-7",'
        f'"timestamp":{created_at},"type":"deal.won"}}'
    )


async def test_only_the_types_asked_for_come_and_an_unknown_one_is_refused(api: Served) -> None:
    client = Client(api, "ops")
    async with client.stream(customer_id="acme", events="deal.lost,lead.created") as messages:
        await anext(messages)
        for number, event_type in enumerate(["deal.won", "deal.lost", "deal.won", "lead.created"]):
            await emit(api, number, event_type)
        async for _ in messages:
            if len(client.got) == 2:
                break
    assert numbers(client.got) == [1, 3]
    refused = await api.acme.get("/events/stream", events="deal.won,deal.lots")
    assert (refused.status_code, refused.json()["code"]) == (400, "unknown_event_type")
    assert (await api.ops.get("/events/stream")).status_code == 422
    assert (await api.acme.get("/events/stream", customer_id="globex")).status_code == 403


async def test_late_commits_leave_no_gap_and_nothing_comes_twice_while_the_client_is_cut_off_again_and_again(
    api: Served, migrated_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 events in transactions that begin, emit and commit in three different orders; some emits are rolled back."""
    monkeypatch.setattr(tails, "LOOK_S", 0.02)
    client = Client(api, "acme")
    await started(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, emit_interleaved, migrated_database, 500, 10)
        cuts = 0
        while len(client.got) < 500:
            with trio.move_on_after(0.7 + cuts % 3 * 0.3):
                await client.read(min(500, len(client.got) + 90))
            cuts += 1
    assert cuts > 3
    assert sorted(numbers(client.got)) == list(range(500))
    positions = await api.rows("SELECT event_id FROM dealix.heard ORDER BY xid, id")
    assert [one["event_id"] for one in client.got] == [event_id for (event_id,) in positions]
    by_commit = await api.rows(
        "SELECT count(*) FROM (SELECT id < lag(id) OVER (ORDER BY xid, id) AS back FROM dealix.heard) t WHERE back"
    )
    assert by_commit[0][0] > 0, "no emit was overtaken: the test did not test"


def emit_interleaved(url: str, count: int, width: int) -> None:
    """Emits numbered 0 to count - 1, over `width` sessions whose order of beginning, emitting and committing differ."""
    chance = random.Random(7)
    idle = [psycopg.connect(url) for _ in range(width)]
    begun: list[psycopg.Connection] = []
    number = 0
    while number < count or begun:
        time.sleep(0.004)  # so that it lasts a hundred looks
        if idle and number < count and chance.random() < 0.3:
            begun.append(idle.pop())
            begun[-1].execute("SELECT pg_current_xact_id()")
        elif begun and number < count and chance.random() < 0.6:
            session = chance.choice(begun)
            session.execute("SELECT dealix.emit('acme', 'deal.won', %s::text)", [json.dumps({"n": number})])
            if number % 5 == 0:
                with suppress(ZeroDivisionError), session.transaction():
                    session.execute("SELECT dealix.emit('acme', 'deal.won', '{\"n\": -1}')")
                    raise ZeroDivisionError
            number += 1
        elif begun:
            idle.append(begun.pop(chance.randrange(len(begun))))
            idle[-1].commit()
    for session in idle:
        session.close()


async def test_an_open_transaction_holds_the_stream_up_and_its_own_events_come_first(
    api: Served, migrated_database: str
) -> None:
    client = Client(api, "acme")
    await started(client)
    with psycopg.connect(migrated_database) as late:
        late.execute("SELECT dealix.emit('acme', 'deal.won', '{\"n\": 1}')")
        await emit(api, 2)
        async with client.stream(max_s=1) as messages:
            assert [message.data async for message in messages if message.data] == []
        late.commit()
    assert numbers(await client.read(2)) == [1, 2]


async def test_a_rolled_back_event_never_comes(api: Served, migrated_database: str) -> None:
    client = Client(api, "acme")
    await started(client)
    with psycopg.connect(migrated_database) as session:
        session.execute("SELECT dealix.emit('acme', 'deal.won', '{\"n\": 1}')")
        session.rollback()
    await emit(api, 2)
    assert numbers(await client.read(1)) == [2]


async def test_more_than_a_look_finds_comes_whole(api: Served) -> None:
    client = Client(api, "acme")
    await started(client)
    count = tails.LOOK_LIMIT + 20
    await api.run(
        "SELECT dealix.emit('acme', 'deal.won', json_build_object('n', n)) FROM generate_series(1, %(count)s) n",
        count=count,
    )
    assert numbers(await client.read(count)) == list(range(1, count + 1))


async def test_nothing_is_noted_for_customers_to_whom_nobody_listens(api: Served) -> None:
    await started(Client(api, "acme"))
    await emit(api, 1, customer="globex")
    assert await api.rows("SELECT count(*) FROM dealix.heard") == [(0,)]


async def test_a_cursor_that_is_no_longer_good_is_gone_and_one_that_is_none_is_refused(api: Served) -> None:
    client = Client(api, "acme")
    await started(client)
    await emit(api, 1)
    await api.run("UPDATE dealix.listeners SET until = now() - interval '1 second'")
    async with api.pool.connection(5) as conn:
        await listening.forget_unheard(conn, await listening.horizon(conn))
    assert await api.rows("SELECT * FROM dealix.listeners") == []
    for _ in range(2):  # also when somebody has begun to listen again
        gone = await api.acme.get("/events/stream", cursor=client.last_id or "")
        assert (gone.status_code, gone.json()["code"]) == (410, "cursor_gone")
        await started(Client(api, "acme"))
    for cursor in ("1", "1-2", "1-2-3-4", "9" * 30 + "-1-1"):
        assert (await api.acme.get("/events/stream", cursor=cursor)).status_code == 422
    assert (await api.acme.get("/events/stream", cursor=f"{10**17}-{10**17}-0")).status_code == 410


async def test_what_has_lain_for_an_hour_is_forgotten_and_who_would_miss_it_is_told(api: Served) -> None:
    behind, ahead = Client(api, "acme"), Client(api, "acme")
    await started(behind)
    await emit(api, 1)
    await ahead.read(0, max_s=1)
    async with api.pool.connection(5) as conn:
        now = await listening.horizon(conn)
        await listening.forget_below(conn, now)
    assert await api.rows("SELECT * FROM dealix.heard") == []
    assert (await api.acme.get("/events/stream", cursor=behind.last_id or "")).status_code == 410
    await started(ahead)


async def test_a_revoked_key_ends_its_stream_and_a_heartbeat_moves_the_cursor(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_S", 0.6)
    client = Client(api, "acme")
    async with client.stream() as messages:
        first = await anext(messages)
        await emit(api, 1, customer="globex")
        assert (await anext(messages)).id != first.id
        await api.run("UPDATE dealix.api_keys SET revoked_at = now() WHERE customer_id = 'acme'")
        with trio.fail_after(5):
            assert [message.data async for message in messages if message.data] == []


async def test_the_streams_of_one_customer_are_bounded_and_a_place_is_free_when_one_ends(api: Served) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(tails.STREAMS_OF_ONE):
            await nursery.start(hold, Client(api, "acme"))
        refused = await api.acme.get("/events/stream")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
        await started(Client(api, "globex"))
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        while (await api.acme.get("/events/stream", max_s=1)).status_code != 200:
            await trio.sleep(0.05)


async def hold(client: Client, task_status: trio.TaskStatus[None]) -> None:
    async with client.stream() as messages:
        await anext(messages)
        task_status.started()
        await trio.sleep_forever()


async def test_streams_end_at_once_when_the_service_stops(api: Served) -> None:
    async with Client(api, "acme").stream() as messages:
        await anext(messages)
        api.stop.set()
        with trio.fail_after(1):
            assert [message async for message in messages] == []


async def test_two_streams_of_one_customer_cost_one_look_at_a_time(api: Served) -> None:
    """Whatever the number of streams: two statements every half second."""
    clients = [Client(api, "acme"), Client(api, "acme"), Client(api, "globex")]
    async with trio.open_nursery() as nursery:
        for client in clients:
            await nursery.start(hold, client)
        before = await looks(api)
        await trio.sleep(2)
        assert 1 <= await looks(api) - before <= 7  # the server counts with a delay of a second
        nursery.cancel_scope.cancel()


async def looks(api: Served) -> int:
    """How often the streams' table was scanned by its index, in ranges of one stream each, over three."""
    await api.run("SELECT pg_stat_force_next_flush()")
    ((scans,),) = await api.rows(
        "SELECT idx_scan FROM pg_stat_user_indexes WHERE relname = 'heard' AND schemaname = 'dealix'"
    )
    return scans // 3


async def test_an_emitter_never_waits_for_who_listens(api: Served, migrated_database: str) -> None:
    """A registration that is being renewed is locked; emits read it all the same."""
    await started(Client(api, "acme"))
    with psycopg.connect(migrated_database) as renewing:
        renewing.execute("UPDATE dealix.listeners SET until = now() + interval '1 hour'")
        await emit(api, 1)
    assert await api.rows("SELECT count(*) FROM dealix.heard") == [(1,)]


async def test_a_position_is_of_one_registration(api: Served) -> None:
    async with api.pool.connection(5) as conn:
        acme = CustomerId("acme")
        first = await listening.begin(conn, acme)
        assert await listening.resume(conn, acme, first)
        await conn.execute("DELETE FROM dealix.listeners")
        second = await listening.begin(conn, acme)
        assert not await listening.resume(conn, acme, first)
        assert await listening.resume(conn, acme, second)
