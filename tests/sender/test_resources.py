"""What POSTs leave behind, whatever the receivers did and whenever they were cancelled: nothing."""

from __future__ import annotations

import gc
import os
import random
import resource
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from daemon.sender import dialer
from daemon.sender.idle import IDLE_S
from tests.support import answers
from tests.support.answers import status
from tests.support.certificates import Authority
from tests.support.poster import Poster, Posters
from tests.support.receiver import Receiver, open_receiver


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_hostile_receivers_leave_no_descriptor_open(authority: Authority, posters: Posters) -> None:
    modes = [
        answers.hang(),
        answers.drip_head(),
        answers.drip_body(),
        answers.huge_body(),
        answers.endless_headers(),
        answers.interim_flood(),
        answers.two_at_once(),
        answers.close(),
        answers.reset(),
        answers.close(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
        answers.raw(b"SSH-2.0-x\r\n"),
        answers.then_close(status(200)),
        status(200, close=True),
    ]
    poster = posters.make(timeout_s=0.3)
    with trio.fail_after(20):
        async with (
            open_receiver() as plain,
            open_receiver(tls=authority.server("127.0.0.1")) as secure,
            open_receiver(tls=authority.server("wrong.example")) as wrong,
        ):
            before = descriptors()
            for n, mode in enumerate(modes):
                plain.answer(f"/{n}", status(200), mode)
                secure.answer(f"/{n}", status(200), mode)
            async with open_receiver() as deaf, trio.open_nursery() as nursery:
                deaf.answer("/deaf", answers.deaf())
                deaf.answer("/early", answers.early(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n"))
                for path in ("/deaf", "/early"):
                    nursery.start_soon(several, poster, deaf.url(path), 3)
                for receiver in (plain, secure, wrong):
                    for n in range(len(modes)):
                        nursery.start_soon(several, poster, receiver.url(f"/{n}"), 3)
            poster.sender.close_idle()
            assert poster.sender.idle == 0
            for receiver in (plain, secure, wrong):
                await receiver.wait_for_open(0)
            assert descriptors() == before


async def several(poster: Poster, url: str, count: int) -> None:
    for _ in range(count):
        await poster.post(url)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_posts_cancelled_at_any_moment_leave_nothing(
    authority: Authority,
    posters: Posters,
    secure: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    chance = random.Random(7)
    poster = posters.make(lambda _: ["127.0.0.3", "127.0.0.1"], timeout_s=5)
    with trio.fail_after(20):
        async with open_receiver(tls=authority.server("hooks.example") if secure else None) as receiver:
            url = f"https://hooks.example:{receiver.port}/" if secure else receiver.url()
            receiver.answer_all(status(200, b"x" * 3000, delay_s=0.002))
            before = descriptors()
            for _ in range(150):
                with trio.move_on_after(chance.random() * (0.012 if secure else 0.006)):
                    await poster.post(url, b"x" * chance.choice([10, 400_000]))
                if chance.random() < 0.5:
                    poster.sender.close_idle()
            endpoint = poster.endpoint(url)
            assert (endpoint.in_use, poster.gate.borrowed_tokens) == (0, 0)
            assert endpoint.idle <= 1
            endpoint.close_idle()
            assert poster.sender.idle == 0
            await receiver.wait_for_open(0)
            assert descriptors() == before
            assert (await poster.post(url)).status_code == 200


async def test_a_dial_cancelled_in_its_race_leaves_nothing(posters: Posters) -> None:
    poster = posters.make(lambda _: ["127.0.0.2", "127.0.0.1", "127.0.0.3"])
    with trio.fail_after(10):
        async with open_receiver() as receiver:
            before = descriptors()
            for turn in range(60):
                with trio.move_on_after(turn * 0.00005):
                    await poster.post(f"https://hooks.example:{receiver.port}/")
            await receiver.wait_for_open(0)
            assert descriptors() == before


async def test_of_addresses_that_answer_almost_at_once_one_connection_is_left(
    posters: Posters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "_STAGGER_S", 0.0)
    poster = posters.make(lambda _: ["127.0.0.1", "127.0.0.2", "127.0.0.3"])
    accepted = 0

    async def close_at_once(_: trio.SocketStream) -> None:
        nonlocal accepted
        accepted += 1
        await trio.lowlevel.checkpoint()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, close_at_once, 0, host="0.0.0.0")
            listener, *_ = await nursery.start(serve)
            before = descriptors()
            for _ in range(30):
                await poster.post(f"https://hooks.example:{listener.socket.getsockname()[1]}/")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert accepted > 30
            assert descriptors() == before
            nursery.cancel_scope.cancel()


async def test_idle_connections_of_all_endpoints_have_one_cap_and_the_oldest_go_first(posters: Posters) -> None:
    poster = posters.make(max_idle=3)
    with trio.fail_after(5):
        async with open_receiver() as receiver:
            for n in range(6):
                await poster.post(receiver.url(f"/{n}"))
            await receiver.wait_for_open(3)
            assert poster.sender.idle == 3
            assert [poster.endpoint(receiver.url(f"/{n}")).idle for n in range(6)] == [0, 0, 0, 1, 1, 1]
            await poster.sender.aclose()
            await poster.post(receiver.url("/5"))
            assert poster.sender.idle == 0  # closed: none is kept any more
            await receiver.wait_for_open(0)


async def test_a_connection_idle_for_30_s_is_closed_and_not_used(
    mock_clock: trio.testing.MockClock, posters: Posters
) -> None:
    poster = posters.make(timeout_s=1000)
    async with open_receiver() as receiver:
        await poster.post(receiver.url("/a"))
        mock_clock.jump(IDLE_S - 1)
        await poster.post(receiver.url("/b"))
        assert poster.sender.idle == 2
        mock_clock.jump(2)
        poster.sender.drop_expired()
        assert [poster.endpoint(receiver.url(path)).idle for path in ("/a", "/b")] == [0, 1]
        mock_clock.jump(IDLE_S)
        await poster.post(receiver.url("/b"))
        assert receiver.connections == 3


async def test_an_endpoint_closes_its_own_connections_only(poster: Poster, receiver: Receiver) -> None:
    with trio.fail_after(5):
        for path in ("/a", "/b"):
            await poster.post(receiver.url(path))
        poster.endpoint(receiver.url("/a")).close_idle()
        await receiver.wait_for_open(1)
        await poster.post(receiver.url("/b"))
        assert receiver.connections == 2


async def test_a_connection_in_use_while_its_endpoint_is_closed_is_not_kept(poster: Poster, receiver: Receiver) -> None:
    receiver.answer("/", status(200, delay_s=0.05), status(200))
    endpoint = poster.endpoint(receiver.url())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poster.post, receiver.url())
            await receiver.wait_for(1)
            endpoint.close_idle()
        assert (endpoint.idle, poster.sender.idle) == (0, 0)
        await poster.post(receiver.url())
        assert endpoint.idle == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.threat("N124")
async def test_without_descriptors_idle_connections_make_room(poster: Poster, receiver: Receiver) -> None:
    """The receiver shares the process: what the sender frees, both ends need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with trio.fail_after(10):
        for n in range(4):
            await poster.post(receiver.url(f"/{n}"))
        assert poster.sender.idle == 4
        with ExitStack() as stack:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 20, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            while True:
                try:
                    stack.callback(os.close, os.dup(0))
                except OSError:
                    break
            assert (await poster.post(receiver.url("/new"))).status_code == 200


async def test_many_posts_leave_no_memory_and_no_work_for_the_garbage_collector(
    poster: Poster, receiver: Receiver
) -> None:
    with trio.fail_after(10):
        await several(poster, receiver.url(), 20)
        receiver.received.clear()
        gc.collect()
        gc.disable()
        try:
            before = len(gc.get_objects())
            await several(poster, receiver.url(), 100)
            receiver.received.clear()
            assert len(gc.get_objects()) - before < 100  # less than one object a POST: no cycles are left
        finally:
            gc.enable()
