"""`dealix listen` as its user has it: a process between the API, over a network that can be cut, and a local server."""

from __future__ import annotations

import json
import re
from typing import Final

import pytest
import stripe
import trio
from standardwebhooks import Webhook

from tests.cli.conftest import Dealix
from tests.support.answers import status
from tests.support.api import Served, open_api
from tests.support.command import running
from tests.support.network import network_to
from tests.support.receiver import open_receiver

LIMIT_S: Final = 50.0
SECRET: Final = "whsec_" + "c2VjcmV0" * 5


async def emit(api: Served, *numbers: int, event_type: str = "deal.won") -> None:
    body = {"customer_id": "acme", "event_type": event_type}
    events = [body | {"payload": {"n": number, "text": "a\u2028b"}} for number in numbers]
    assert (await api.ops.post("/events/emit/batch", {"events": events})).status_code == 202


@pytest.mark.timeout(LIMIT_S + 10)
async def test_events_of_a_cut_network_all_arrive_once_and_in_order_verified_by_both_schemes(
    migrated_database: str,
) -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            open_api(migrated_database) as api,
            network_to(api.port) as (network, url),
            open_receiver() as receiver,
            running(
                *("listen", "--forward-to", receiver.url("/hook"), "--api-url", url), DEALIX_API_KEY=api.keys["acme"]
            ) as command,
        ):
            secret = (await command.line(r"signed with (whsec_\S+)$"))[1]
            await command.line(r"^Ready\.$")
            await emit(api, *range(20))
            await receiver.wait_for(20)
            network.cut()
            await emit(api, *range(20, 270))
            await command.line("^Disconnected .*Trying again")
            before = network.tried
            while network.tried < before + 2:
                await trio.sleep(0.05)
            await emit(api, *range(270, 520))
            network.come_back()
            requests = await receiver.wait_for(520, timeout_s=30)
            await command.line(r"^Connected again; nothing was lost\.$")
            await emit(api, 520)
            requests = await receiver.wait_for(521)
            assert [json.loads(one.body)["data"]["n"] for one in requests] == list(range(521))
            for one in requests[::40]:
                text = one.body.decode()
                Webhook(secret).verify(text, one.headers)
                stripe.WebhookSignature.verify_header(text, one.headers["dealix-signature"], secret, 300)
            assert requests[0].headers["dealix-delivery-attempt"] == "1"
            event_id = requests[0].headers["webhook-id"]
            await command.line(rf"^\d\d:\d\d:\d\d  deal\.won  {event_id}  200  \d+ ms$")


@pytest.mark.timeout(LIMIT_S + 10)
async def test_a_local_server_that_fails_is_shown_and_the_next_event_comes_all_the_same(migrated_database: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_api(migrated_database) as api, open_receiver() as receiver:
            receiver.answer("/hook", status(500), status(302), status(204))
            words = ("listen", "--forward-to", receiver.url("/hook"), "--customer", "acme", "--events", "deal.lost")
            async with running(
                *words, "--secret", SECRET, "--api-url", api.url, DEALIX_API_KEY=api.keys["ops"]
            ) as command:
                await command.line(rf"signed with {SECRET}$")
                await command.line("^Ready")
                await emit(api, 0)
                await emit(api, 1, 2, 3, event_type="deal.lost")
                for answer in ("500", "302", "204"):
                    await command.line(rf"deal\.lost  evt_\w+  {answer}  ")
                assert [json.loads(one.body)["data"]["n"] for one in receiver.received] == [1, 2, 3]
                receiver_gone = "http://127.0.0.1:9/hook"
            async with running(
                "listen", "--forward-to", receiver_gone, "--api-url", api.url, DEALIX_API_KEY=api.keys["acme"]
            ) as command:
                await command.line("^Ready")
                await emit(api, 4)
                await command.line(r"deal\.won  evt_\w+  .*refused.*  \d+ ms$")


@pytest.mark.timeout(LIMIT_S + 10)
async def test_bodies_are_printed_as_lines_of_json_where_that_is_asked_for(migrated_database: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_api(migrated_database) as api:
            words = ("listen", "--print-json", "--api-url", api.url)
            async with running(*words, DEALIX_API_KEY=api.keys["acme"]) as command:
                await command.line("^Ready")
                await emit(api, 7)
                body = json.loads((await command.line(r"^\{.*\}$"))[0])
                assert (body["type"], body["customer_id"], body["data"]["n"]) == ("deal.won", "acme", 7)


async def test_what_cannot_work_is_told_at_once(migrated_database: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_api(migrated_database) as api:
            for key, words, said in (
                ("dlx_wrong", (), "dealix: the API answered 401: A valid key is needed: "),
                (api.keys["ops"], (), "dealix: the API answered 422: customer_id: is needed with an ops key"),
                (api.keys["acme"], ("--events", "deal.lots"), "dealix: the API answered 400: There is no event type"),
            ):
                async with running("listen", *words, "--api-url", api.url, DEALIX_API_KEY=key) as command:
                    await command.line("^" + re.escape(said))
                    assert await command.process.wait() == 1


@pytest.mark.parametrize(
    ("words", "environ", "code", "text"),
    [
        ((), {}, 2, "Set DEALIX_API_KEY"),
        (("--forward-to", "localhost:3000"), {"DEALIX_API_KEY": "x"}, 2, "must be a URL such as http://localhost"),
        (("--secret", "hunter2"), {"DEALIX_API_KEY": "x"}, 2, "must be whsec_ and standard base64"),
        (("--api-url", "http://127.0.0.1:9"), {"DEALIX_API_KEY": "x"}, 1, "http://127.0.0.1:9: "),
        ((), {"DEALIX_API_KEY": "x", "DEALIX_API_URL": "http://127.0.0.1:9"}, 1, "http://127.0.0.1:9: "),
        ((), {"DEALIX_API_KEY": "x", "DEALIX_API__BIND": "127.0.0.1:9"}, 1, "http://127.0.0.1:9: "),
    ],
)
def test_wrong_usage_and_an_api_that_is_not_there_are_told(
    dealix: Dealix, words: tuple[str, ...], environ: dict[str, str], code: int, text: str
) -> None:
    ended = dealix("listen", *words, **environ)
    assert (ended.code, ended.out) == (code, "")
    assert text in ended.err
    assert SECRET not in ended.err
