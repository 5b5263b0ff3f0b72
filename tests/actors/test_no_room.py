"""A database that reads but does not take results, as with a full disk: nothing more is sent until it does."""

from __future__ import annotations

from typing import Final

import trio

from tests.support.answers import status
from tests.support.engine import Running, running_engine
from tests.support.receiver import open_receiver

REFUSE: Final = (
    """
    CREATE FUNCTION dealix.no_room() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
    END $$
    """,
    "CREATE TRIGGER no_room BEFORE INSERT ON dealix.attempts FOR EACH STATEMENT EXECUTE FUNCTION dealix.no_room()",
)
RELIEVE: Final = ("DROP FUNCTION dealix.no_room() CASCADE",)
LATER: Final = 30


async def run(running: Running, *statements: str) -> None:
    async with running.pool.connection(5) as conn:
        for statement in statements:
            await conn.execute(statement.encode())


async def test_nothing_more_is_sent_while_results_find_no_room(migrated_database: str) -> None:
    with trio.fail_after(40):
        async with open_receiver() as receiver, running_engine(migrated_database) as running:
            receiver.answer_all(status(200))
            for n in range(3):
                await running.subscribe(receiver.url(), customer_id=f"c{n}")
            await run(running, *REFUSE)
            try:
                await running.emit(customer_id="c0")
                while not running.engine.recorder.is_stuck:
                    await trio.sleep(0.01)
                for n in range(LATER):
                    await running.emit(customer_id=f"c{n % 3}")
                await trio.sleep(1.2)  # two polls of everybody who polls
                assert len(receiver.received) == 1
            finally:
                await run(running, *RELIEVE)
            await receiver.wait_for(1 + LATER)
            await running.until(1 + LATER, "SELECT count(*) FROM dealix.attempts WHERE outcome = 'delivered'")
            assert len(receiver.received) == 1 + LATER
