"""`dealix trigger`, `replay` and `deliveries tail` against an API that works."""

from __future__ import annotations

import json
from typing import Final

import pytest
import trio

from tests.support.answers import status
from tests.support.api import open_api
from tests.support.command import running
from tests.support.receiver import open_receiver

LIMIT_S: Final = 45.0


@pytest.mark.timeout(LIMIT_S + 10)
async def test_a_sample_is_sent_its_attempts_are_tailed_and_it_is_sent_again(migrated_database: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_api(migrated_database, working=True) as api, open_receiver() as receiver:
            receiver.answer("/hook", status(400), status(200))
            made = await api.acme.subscribe(receiver.url("/hook"))
            ops = {"DEALIX_API_KEY": api.keys["ops"], "DEALIX_API_URL": api.url}
            acme = ops | {"DEALIX_API_KEY": api.keys["acme"]}
            async with running("deliveries", "tail", **acme) as tail:
                await tail.line("^Waiting for attempts")
                async with running("trigger", "deal.won", "--customer", "acme", **ops) as command:
                    sample = (await command.line(r"^(sample_\w+)  matched 1$"))[1]
                (first,) = await receiver.wait_for(1)
                assert json.loads(first.body)["data"]["deal_id"] == "deal_7"
                attempt = (await tail.line(rf"(dlv_\w+)  deal\.won  {sample}  attempt 1  400  \d+ ms"))[1]
                for number, identifier in ((2, attempt), (3, sample)):
                    async with running("replay", identifier, **acme) as command:
                        await command.line(rf"^{sample}  {made['id']}  attempt {number}$")
                    await tail.line(rf"deal\.won  {sample}  attempt {number}  200  ")
            async with running("trigger", "deal.lost", "--endpoint", made["id"], **acme) as command:
                await command.line(r"^evt_\w+  200  \d+ ms$")
            assert len(receiver.received) == 4
            for words, code, said in (
                (("trigger", "deal.won"), 2, "Give --customer ID"),
                (("trigger", "deal.lots", "--customer", "acme"), 1, "dealix: the API answered 400: "),
                (("replay", "what is this"), 2, "ID must be that of a delivery"),
                (("replay", "dlv_" + "0" * 24), 1, "404"),
            ):
                async with running(*words, **ops) as command:
                    await command.line(said)
                    assert await command.process.wait() == code
