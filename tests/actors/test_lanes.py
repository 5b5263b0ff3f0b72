"""The limits of what is in flight: slow requests make room, and nothing is ever counted twice or forgotten."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from daemon.actors.lanes import Lanes


async def test_a_request_that_becomes_slow_makes_room_while_the_slow_budget_has_any(
    autojump_clock: MockClock,
) -> None:
    lanes = Lanes(max_in_flight=2, max_slow=2)
    entered: list[int] = []

    async def request(number: int, seconds: float) -> None:
        async with lanes.enter(slow=False):
            entered.append(number)
            await trio.sleep(seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lanes.run)
        async with trio.open_nursery() as requests:
            for number in range(6):
                requests.start_soon(request, number, 10.0)
                await wait_all_tasks_blocked()
            assert (sorted(entered), lanes.in_flight(), lanes.waiting()) == ([0, 1], 2, 4)
            await trio.sleep(1.5)
            assert (sorted(entered), lanes.in_flight()) == ([0, 1, 2, 3], 4)
            await trio.sleep(5)  # the slow budget is full
            assert (sorted(entered), lanes.in_flight(), lanes.waiting()) == ([0, 1, 2, 3], 4, 2)
        assert sorted(entered) == [0, 1, 2, 3, 4, 5]
        assert (lanes.in_flight(), lanes.waiting()) == (0, 0)
        nursery.cancel_scope.cancel()


async def test_a_request_known_to_be_slow_takes_nobodys_place(autojump_clock: MockClock) -> None:
    lanes = Lanes(max_in_flight=1, max_slow=1)
    async with lanes.enter(slow=True):
        with trio.fail_after(1):
            async with lanes.enter(slow=False):
                assert lanes.in_flight() == 2
    assert lanes.in_flight() == 0


async def test_cancelled_requests_give_their_places_back_wherever_they_were(autojump_clock: MockClock) -> None:
    lanes = Lanes(max_in_flight=2, max_slow=2)

    async def request(*, slow: bool) -> None:
        async with lanes.enter(slow=slow):
            await trio.sleep_forever()

    async def slow_one() -> None:
        await request(slow=True)

    async def quick_one() -> None:
        await request(slow=False)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lanes.run)
        async with trio.open_nursery() as requests:
            requests.start_soon(slow_one)
            for _ in range(5):
                requests.start_soon(quick_one)
            await trio.sleep(1.5)
            assert (lanes.in_flight(), lanes.waiting()) == (4, 2)
            requests.cancel_scope.cancel()
        assert (lanes.in_flight(), lanes.waiting()) == (0, 0)
        nursery.cancel_scope.cancel()
