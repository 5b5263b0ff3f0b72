"""The honest cases: what is sent, what comes back, which connection carries it, and when the gate is held."""

from __future__ import annotations

import pytest
import trio

from daemon.model import Outcome
from tests.support.answers import Answer, close, deaf, drip_body, drip_head, early, hang, raw, reset, status, then_close
from tests.support.poster import BODY, Poster
from tests.support.receiver import Receiver, open_receiver

BIG = b"[" + b"1," * 4_000_000 + b"1]"
"""More than any socket buffer takes at once."""


async def test_the_request_arrives_byte_for_byte(poster: Poster, receiver: Receiver) -> None:
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url("/hook?a=b%20c"))
    (request,) = receiver.received
    assert outcome.status_code == 200
    assert request.head == (
        b"POST /hook?a=b%20c HTTP/1.1\r\n"
        b"Host: 127.0.0.1:" + str(receiver.port).encode() + b"\r\n"
        b"Content-Type: application/json\r\nX-Build: 1\r\n"
        b"Accept-Encoding: identity\r\nContent-Length: 14\r\n\r\n"
    )
    assert request.body == BODY


async def test_an_outcome_tells_the_answer(poster: Poster, receiver: Receiver) -> None:
    receiver.answer_all(status(503, b'{"no":1}', {"Retry-After": "120", "X-Why": "b\xfcro"}, delay_s=0.05))
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url())
    assert outcome == Outcome(
        status_code=503,
        error_kind=None,
        error=None,
        duration_ms=outcome.duration_ms,
        response_headers=(("Retry-After", "120"), ("X-Why", "büro"), ("Content-Length", "8")),
        response_body='{"no":1}',
        response_truncated=False,
        retry_after="120",
    )
    assert 50 <= outcome.duration_ms < 400


@pytest.mark.parametrize("code", [200, 201, 202, 204, 205, 226, 304, 400, 404, 408, 410, 418, 429, 500, 502, 599])
async def test_any_final_status_is_an_outcome_and_leaves_the_connection_usable(
    poster: Poster, receiver: Receiver, code: int
) -> None:
    receiver.answer_all(status(code))
    with trio.fail_after(5):
        outcomes = [await poster.post(receiver.url()) for _ in range(2)]
    assert [(o.status_code, o.error_kind, o.response_truncated) for o in outcomes] == [(code, None, False)] * 2
    assert receiver.connections == 1


async def test_posts_one_after_the_other_share_a_connection(poster: Poster, receiver: Receiver) -> None:
    endpoint = poster.endpoint(receiver.url())
    with trio.fail_after(5):
        for _ in range(20):
            assert (await poster.post(receiver.url())).status_code == 200
    assert receiver.connections == 1
    assert (endpoint.idle, endpoint.in_use) == (1, 0)


async def test_posts_at_the_same_time_have_a_connection_each_and_the_last_used_is_taken_first(
    poster: Poster, receiver: Receiver
) -> None:
    receiver.answer("/", status(200, delay_s=0.05), status(200, delay_s=0.05), status(200))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poster.post, receiver.url())
            nursery.start_soon(poster.post, receiver.url())
            await receiver.wait_for(2)
            assert poster.endpoint(receiver.url()).in_use == 2
        for _ in range(3):
            await poster.post(receiver.url())
    assert receiver.connections == 2
    assert len({request.connection for request in receiver.received[2:]}) == 1


@pytest.mark.threat("N30")
async def test_endpoints_do_not_share_connections_even_for_one_host(poster: Poster, receiver: Receiver) -> None:
    with trio.fail_after(5):
        await poster.post(receiver.url("/a"))
        await poster.post(receiver.url("/b"))
    assert [request.connection for request in receiver.received] == [1, 2]


@pytest.mark.parametrize("header", ["Connection: close\r\n", ""])
async def test_an_answer_that_ends_the_connection_is_followed_by_a_new_one(
    poster: Poster, receiver: Receiver, header: str
) -> None:
    version = "1.1" if header else "1.0"
    receiver.answer_all(raw(f"HTTP/{version} 200 OK\r\n{header}Content-Length: 2\r\n\r\nok".encode(), keep=False))
    with trio.fail_after(5):
        for _ in range(2):
            outcome = await poster.post(receiver.url())
            assert (outcome.status_code, outcome.response_body, outcome.response_truncated) == (200, "ok", False)
    assert receiver.connections == 2
    assert poster.built == 2


async def test_a_body_without_a_length_ends_with_the_connection(poster: Poster, receiver: Receiver) -> None:
    receiver.answer_all(close(b"HTTP/1.1 200 OK\r\n\r\nuntil the end"))
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url())
    assert (outcome.status_code, outcome.response_body, outcome.response_truncated) == (200, "until the end", False)


async def test_a_connection_that_the_server_closed_while_idle_is_not_used(poster: Poster, receiver: Receiver) -> None:
    receiver.answer("/", then_close(status(200)), status(200))
    with trio.fail_after(5):
        await poster.post(receiver.url())
        await receiver.wait_for_open(0)
        assert (await poster.post(receiver.url())).status_code == 200
    assert poster.built == 2  # the end was seen before anything was sent


@pytest.mark.parametrize("death", [close(), reset()], ids=["closed", "reset"])
async def test_a_reused_connection_that_dies_before_an_answer_is_replaced_once(
    poster: Poster, receiver: Receiver, death: Answer
) -> None:
    receiver.answer("/", status(200), death, status(201))
    with trio.fail_after(5):
        await poster.post(receiver.url())
        outcome = await poster.post(receiver.url())
    assert outcome.status_code == 201
    assert [request.connection for request in receiver.received] == [1, 1, 2]
    assert [request.headers["x-build"] for request in receiver.received] == ["1", "2", "3"]  # signed anew


async def test_a_second_death_in_a_row_is_a_failure(poster: Poster, receiver: Receiver) -> None:
    receiver.answer("/", status(200), close(), close(), status(200))
    with trio.fail_after(5):
        await poster.post(receiver.url())
        outcome = await poster.post(receiver.url())
    assert (outcome.status_code, outcome.error_kind) == (None, "reset")
    assert len(receiver.received) == 3


async def test_a_fresh_connection_that_dies_is_not_tried_again(poster: Poster, receiver: Receiver) -> None:
    receiver.answer_all(close())
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url())
    assert (outcome.error_kind, len(receiver.received)) == ("reset", 1)


async def test_a_reused_connection_that_dies_after_the_first_byte_is_not_tried_again(
    poster: Poster, receiver: Receiver
) -> None:
    receiver.answer("/", status(200), reset(b"HTTP/1.1 2"), status(200))
    with trio.fail_after(5):
        await poster.post(receiver.url())
        outcome = await poster.post(receiver.url())
    assert (outcome.error_kind, len(receiver.received)) == ("reset", 2)


@pytest.mark.parametrize("answer", [hang(), drip_head(), deaf()], ids=["silent", "dripping", "not reading"])
async def test_the_deadline_holds_on_a_reused_connection_too(
    poster: Poster, receiver: Receiver, answer: Answer
) -> None:
    receiver.answer("/", status(200), answer, status(201))
    with trio.fail_after(5):
        await poster.post(receiver.url())
        outcome = await poster.post(receiver.url(), BIG)
        assert (outcome.error_kind, outcome.error) == ("timeout", "No complete answer came within 0.4 s.")
        assert 380 <= outcome.duration_ms < 1500
        # A connection on which an answer may still come is not used again.
        assert (await poster.post(receiver.url())).status_code == 201
    assert [request.connection for request in receiver.received] == [1, 1, 2]


async def test_a_body_that_drips_on_a_reused_connection_ends_at_the_deadline_and_its_status_stands(
    poster: Poster, receiver: Receiver
) -> None:
    receiver.answer("/", status(200), drip_body(202), status(200))
    with trio.fail_after(5):
        await poster.post(receiver.url())
        outcome = await poster.post(receiver.url())
        assert (outcome.status_code, outcome.response_truncated) == (202, True)
        await receiver.wait_for_open(0)


async def test_deadlines_of_many_exchanges_hold_each_for_its_own(poster: Poster, receiver: Receiver) -> None:
    receiver.answer("/slow", status(200), hang())
    late: list[int] = []

    async def again() -> None:
        late.append((await poster.post(receiver.url("/slow"))).duration_ms)

    with trio.fail_after(10):
        await poster.post(receiver.url("/slow"))
        for _ in range(3):
            await poster.post(receiver.url("/fast"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again)
            for _ in range(10):
                await trio.sleep(0.1)
                assert (await poster.post(receiver.url("/fast"))).status_code == 200
    assert 380 <= late[0] < 1500


async def test_the_gate_is_free_while_an_answer_is_awaited(poster: Poster, receiver: Receiver) -> None:
    receiver.answer("/slow", hang())
    poster.gate.total_tokens = 1
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poster.post, receiver.url("/slow"))
            await receiver.wait_for(1)
            assert poster.gate.borrowed_tokens == 0
            assert (await poster.post(receiver.url("/fast"))).status_code == 200
            nursery.cancel_scope.cancel()


async def test_the_gate_is_free_while_a_peer_does_not_read(poster: Poster, receiver: Receiver) -> None:
    receiver.answer("/deaf", deaf())
    poster.gate.total_tokens = 1
    outcomes: list[Outcome] = []

    async def send() -> None:
        outcomes.append(await poster.post(receiver.url("/deaf"), BIG))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await receiver.wait_for(1)
            assert (await poster.post(receiver.url("/fast"))).status_code == 200
    assert outcomes[0].error_kind == "timeout"


async def test_a_request_is_built_under_the_gate_and_only_when_the_connection_stands(
    poster: Poster, receiver: Receiver
) -> None:
    endpoint = poster.endpoint(receiver.url())
    seen: list[tuple[int, int]] = []

    def request() -> bytes:
        seen.append((poster.gate.borrowed_tokens, receiver.port))
        return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"

    with trio.fail_after(5):
        async with poster.gate, trio.open_nursery() as nursery:
            poster.gate.total_tokens = 1
            nursery.start_soon(endpoint.post, request, poster.gate)
            await receiver.wait_for_open(1)  # dialled outside the gate, which is ours
            assert seen == []
            nursery.cancel_scope.cancel()
        poster.gate.total_tokens = 8
        assert (await endpoint.post(request, poster.gate)).status_code == 200
    assert seen == [(1, receiver.port)]


async def test_what_the_request_raises_is_raised_and_nothing_is_sent(poster: Poster, receiver: Receiver) -> None:
    def request() -> bytes:
        raise LookupError("called back")

    with trio.fail_after(5):
        with pytest.raises(LookupError, match="called back"):
            await poster.endpoint(receiver.url()).post(request, poster.gate)
        await receiver.wait_for_open(0)
    assert receiver.received == []
    assert poster.endpoint(receiver.url()).in_use == 0
    assert poster.gate.borrowed_tokens == 0


async def test_a_large_body_arrives_whole(poster: Poster, receiver: Receiver) -> None:
    with trio.fail_after(5):
        for _ in range(2):
            assert (await poster.post(receiver.url(), BIG[:2_000_000])).status_code == 200
    assert [request.body for request in receiver.received] == [BIG[:2_000_000]] * 2
    assert receiver.connections == 1


async def test_an_answer_before_the_body_was_read_counts_and_ends_the_connection(
    poster: Poster, receiver: Receiver
) -> None:
    receiver.answer_all(early(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"))
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url(), BIG)
        await receiver.wait_for(1)
    assert outcome.status_code == 413
    assert poster.endpoint(receiver.url()).idle == 0


async def test_an_answer_followed_by_a_reset_while_the_body_is_sent_counts(poster: Poster, receiver: Receiver) -> None:
    refuse = close(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    receiver.answer_all(type(refuse)("refuse", refuse.play, reads_body=False))
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url(), BIG[:300_000])
    # The kernel may drop what it has received when the RST comes: then nobody can know the answer.
    assert outcome.status_code == 413 or outcome.error_kind == "reset"


async def test_ipv6_works(poster: Poster) -> None:
    with trio.fail_after(5):
        async with open_receiver(host="::1") as receiver:
            assert (await poster.post(receiver.url("/v6"))).status_code == 200
            (request,) = receiver.received
    assert request.headers["host"] == f"[::1]:{receiver.port}"


async def test_a_refused_connection_is_a_failure_that_names_the_endpoint_without_its_path(poster: Poster) -> None:
    async with open_receiver() as gone:
        url = gone.url("/secret-path")
    with trio.fail_after(5):
        outcome = await poster.post(url)
    assert outcome.error_kind == "connect"
    assert outcome.error == f"The connection to 127.0.0.1:{gone.port} was refused."
