"""The limits of what is in flight: slow requests make room, and nothing is ever counted twice or forgotten."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from daemon.actors.lanes import GATE, NARROW, Gate, Lanes


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


async def test_the_gate_lets_so_many_pass_a_turn_and_nobody_waits_where_there_is_room() -> None:
    gate, passed, turns = Gate(), [0], [0]
    order: list[int] = []

    async def pass_it(number: int) -> None:
        await gate.acquire()
        order.append(number)
        passed[-1] += 1
        gate.release()

    async def count() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            turns[0] += 1
            passed.append(0)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate.run)
            nursery.start_soon(count)
            async with trio.open_nursery() as passing:
                for number in range(GATE * 5):
                    passing.start_soon(pass_it, number)
            assert sorted(order) == list(range(GATE * 5))
            # What is unparked in one turn runs in the next, beside those who come then: two turns' share at the most.
            assert max(passed) <= GATE + GATE // 2
            assert gate.waiting() == 0
            await trio.sleep(0.01)
            before = turns[0]
            await gate.acquire()  # at once, where there is room
            assert turns[0] == before
            nursery.cancel_scope.cancel()


async def test_while_the_api_has_a_guest_fewer_pass_a_turn() -> None:
    gate, passed = Gate(), [0]

    async def pass_it() -> None:
        await gate.acquire()
        passed[-1] += 1

    async def count() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            passed.append(0)

    async def crowd() -> int:
        """How many of them passed in a turn at the most, once the gate has had a turn to hear of the guest."""
        passed[:] = [0]
        async with trio.open_nursery() as crowding:
            for _ in range(GATE * 5):
                crowding.start_soon(pass_it)
        return max(passed[4:])

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate.run)
            nursery.start_soon(count)
            with gate.narrowed():
                with gate.narrowed():
                    pass
                assert await crowd() <= NARROW + NARROW // 2
            assert await crowd() >= GATE // 2
            nursery.cancel_scope.cancel()


async def test_who_is_cancelled_while_he_waits_at_the_gate_costs_nobody_his_turn() -> None:
    gate = Gate()
    passed: list[int] = []

    async def pass_it(number: int) -> None:
        await gate.acquire()
        passed.append(number)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as leaving:
                async with trio.open_nursery() as crowd:
                    for number in range(GATE * 3):
                        crowd.start_soon(pass_it, number)
                    await wait_all_tasks_blocked()
                    assert (len(passed), gate.waiting()) == (
                        GATE,
                        2 * GATE,
                    )  # nobody opens it again: `run` is not there
                    leaving.cancel()
            assert gate.waiting() == 0
            nursery.start_soon(gate.run)
            await pass_it(-1)
            assert passed[-1] == -1
            nursery.cancel_scope.cancel()
