"""Emitting over HTTP, and looking an event up."""

from __future__ import annotations

import json

import pytest
import trio

from tests.support.answers import status
from tests.support.api import Served, open_api
from tests.support.receiver import open_receiver

EVENT = {"customer_id": "acme", "event_type": "deal.won"}


async def test_an_emit_answers_at_once_with_who_will_get_it(api: Served) -> None:
    await api.acme.subscribe(events=["deal.won"])
    await api.acme.subscribe(events=["deal.lost"])
    answer = await api.ops.post("/events/emit", EVENT | {"payload": {"deal_id": 7}})
    assert answer.status_code == 202
    event_id = answer.json()["event_id"]
    assert answer.json() == EVENT | {"event_id": event_id, "matched": 1, "delivered": 0, "failed": 0, "pending": 1}
    unheard = await api.ops.post("/events/emit", EVENT | {"customer_id": "globex"})
    assert (unheard.status_code, unheard.json()["matched"]) == (202, 0)


PAYLOADS = [
    b'{"id": 1.0, "b":-0.0,"a":12345678901234567890123}',
    b'{ "k" : 1e131071 , "k":2}',
    '{"é":"\U0001f600","esc":"\\u00e9\\ud83d\\ude00\\/"}'.encode(),
    b'{"deep":' + b"[" * 99 + b"]" * 99 + b"}",
    b'{"not a NUL":"\\\\u0000","nor a surrogate":"\\\\ud800"}',
    b"{}",
]


@pytest.mark.threat("N75-N76")
async def test_a_payload_reaches_the_endpoint_byte_for_byte(working_api: Served) -> None:
    async with open_receiver() as receiver:
        await working_api.acme.subscribe(receiver.url("/hook"))
        for n, payload in enumerate(PAYLOADS):
            body = b' {"event_type":"deal.won", "payload" :  ' + payload + b'\n,"customer_id":"acme"}'
            answer = await working_api.ops.send("POST", "/events/emit?wait_s=10", body)
            assert answer.json()["delivered"] == 1
            *_, request = await receiver.wait_for(n + 1)
            assert b'"data":' + payload + b',"id":"' in request.body
            shown = await working_api.acme.get(f"/events/{answer.json()['event_id']}")
            assert b'"data":' + payload + b',"created_at"' in shown.content


async def test_waiting_ends_as_soon_as_every_first_attempt_has_ended(working_api: Served) -> None:
    async with open_receiver() as receiver:
        receiver.answer("/bad", status(500))
        for path in ("/a", "/b", "/bad"):
            await working_api.acme.subscribe(receiver.url(path))
        started_at = trio.current_time()
        answer = await working_api.ops.post("/events/emit", EVENT, wait_s=30)
        assert trio.current_time() - started_at < 10
        assert answer.status_code == 200
        counts = {name: answer.json()[name] for name in ("matched", "delivered", "failed", "pending")}
        assert counts == {"matched": 3, "delivered": 2, "failed": 1, "pending": 0}


async def test_waiting_ends_when_the_time_is_up_and_with_the_first_look_where_nobody_matched(api: Served) -> None:
    await api.acme.subscribe()
    started_at = trio.current_time()
    answer = await api.ops.post("/events/emit", EVENT, wait_s=1)
    assert 1 <= trio.current_time() - started_at < 4
    assert (answer.status_code, answer.json()["pending"]) == (200, 1)
    started_at = trio.current_time()
    answer = await api.ops.post("/events/emit", EVENT | {"customer_id": "globex"}, wait_s=30)
    assert (answer.status_code, answer.json()["pending"]) == (200, 0)
    assert trio.current_time() - started_at < 10


@pytest.mark.threat("N101")
async def test_the_same_own_id_is_the_same_event_and_another_payload_is_409(working_api: Served) -> None:
    async with open_receiver() as receiver:
        await working_api.acme.subscribe(receiver.url("/hook"))
        event = EVENT | {"event_id": "order-7", "payload": {"a": 1}}
        first = await working_api.ops.post("/events/emit", event, wait_s=10)
        again = await working_api.ops.post("/events/emit", event)
        assert first.json() == again.json()
        assert (again.status_code, again.json()["delivered"], again.json()["pending"]) == (202, 1, 0)
        for other in ({"payload": {"a": 2}}, {"event_type": "deal.lost"}):
            refused = await working_api.ops.post("/events/emit", event | other)
            assert (refused.status_code, refused.json()["code"]) == (409, "event_id_conflict")
        elsewhere = await working_api.ops.post("/events/emit", event | {"customer_id": "globex", "payload": {"a": 3}})
        assert elsewhere.status_code == 202
        assert len(receiver.received) == 1


async def test_an_unknown_type_is_400_and_nothing_is_emitted(api: Served) -> None:
    for event_type in ("no.such", "", "\x00", "deal.won ", "' OR 1=1"):
        for path, body in (
            ("/events/emit", EVENT | {"event_type": event_type}),
            ("/events/emit/batch", {"events": [EVENT, EVENT | {"event_type": event_type}]}),
        ):
            answer = await api.ops.post(path, body)
            assert (answer.status_code, answer.json()["code"]) == (400, "unknown_event_type")
    assert await api.rows("SELECT 1 FROM dealix.events") == []


async def test_a_batch_is_emitted_as_a_whole_in_its_order(api: Served) -> None:
    await api.acme.subscribe()
    new = [EVENT | {"payload": {"n": n}, "event_id": f"e-{n}"} for n in range(999)] + [
        EVENT | {"customer_id": "globex"}
    ]
    answer = await api.ops.post("/events/emit/batch", {"events": new})
    assert answer.status_code == 202
    assert (answer.json()["count"], answer.json()["matched"]) == (1000, 999)
    assert [one["event_id"] for one in answer.json()["events"][:-1]] == [f"e-{n}" for n in range(999)]
    assert await api.rows("SELECT count(*) FROM dealix.events") == [(1000,)]
    assert (await api.ops.post("/events/emit/batch", {"events": new[:-1]})).status_code == 202
    assert await api.rows("SELECT count(*) FROM dealix.events") == [(1000,)]


async def test_a_batch_with_one_bad_event_emits_nothing_and_names_it(api: Served) -> None:
    await api.ops.post("/events/emit", EVENT | {"event_id": "taken"})
    for position, bad, code, field in (
        (0, EVENT | {"payload": []}, 422, "events[0].payload"),
        (2, EVENT | {"customer_id": "a b"}, 422, "events[2].customer_id"),
        (1, EVENT | {"event_id": "a.b"}, 422, "events[1].event_id"),
        (1, {"customer_id": "acme"}, 422, "events[1].event_type"),
        (2, EVENT | {"extra": 1}, 422, "events[2].extra"),
        (1, EVENT | {"payload": {"a": "x" * 262_200}}, 413, "events[1].payload"),
        (2, EVENT | {"event_id": "taken", "payload": {"a": 1}}, 409, "events[2]"),
    ):
        new: list[object] = [EVENT, EVENT, EVENT]
        new[position] = bad
        answer = await api.ops.post("/events/emit/batch", {"events": new})
        assert answer.status_code == code, answer.text
        assert answer.json()["detail"].startswith(field)
        if code == 422:
            assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert await api.rows("SELECT count(*) FROM dealix.events") == [(1,)]


async def test_a_batch_has_one_to_a_thousand_events(api: Served) -> None:
    for count in (0, 1001):
        answer = await api.ops.post("/events/emit/batch", {"events": [EVENT] * count})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "events")


async def test_an_event_shows_its_deliveries_as_they_go(working_api: Served) -> None:
    async with open_receiver() as receiver:
        receiver.answer("/later", status(503))
        good, later = [(await working_api.acme.subscribe(receiver.url(path)))["id"] for path in ("/good", "/later")]
        emitted = (await working_api.ops.post("/events/emit", EVENT | {"payload": {"a": 1}}, wait_s=10)).json()
        shown = (await working_api.acme.get(f"/events/{emitted['event_id']}")).json()
        assert {name: shown[name] for name in ("id", "customer_id", "type", "data", "matched")} == {
            "id": emitted["event_id"], "customer_id": "acme", "type": "deal.won", "data": {"a": 1}, "matched": 2,
        }  # fmt: skip
        states = {one["subscription_id"]: one for one in shown["deliveries"]}
        assert (states[good]["state"], states[good]["last_status_code"], states[good]["attempts"]) == (
            "delivered",
            200,
            1,
        )
        assert (states[later]["state"], states[later]["last_status_code"]) == ("scheduled", 503)
        assert states[later]["next_attempt_at"] > shown["created_at"]
        assert (await working_api.ops.get(f"/events/{emitted['event_id']}", customer_id="acme")).json() == shown
        assert (await working_api.ops.get(f"/events/{emitted['event_id']}", customer_id="globex")).status_code == 404
        assert (await working_api.globex.get(f"/events/{emitted['event_id']}")).status_code == 404


async def test_an_answer_is_given_though_the_database_goes_away_while_somebody_waits(migrated_database: str) -> None:
    """The event is emitted: a 503 would have it emitted again."""
    with trio.fail_after(30):
        async with open_api(migrated_database) as served:
            await served.acme.subscribe()
            answers: list[tuple[int, str]] = []

            async def emit() -> None:
                answer = await served.ops.post("/events/emit", EVENT, wait_s=20)
                answers.append((answer.status_code, json.loads(answer.text).get("event_id", answer.text)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(emit)
                while not (found := await served.rows("SELECT id FROM dealix.events")):
                    await trio.sleep(0.01)
                await served.pool.aclose()
            assert answers == [(200, found[0][0])]
