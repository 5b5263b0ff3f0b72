"""docs/receiving.md: its code is the code that is tested, and what it tells to do works."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any, Final

import psycopg
import pytest
import trio

from api.verification import examples
from daemon.policy.signing import Signer, SigningKey, headers
from daemon.store.subscriptions import new_secret
from tests.support.markdown import blocks, under

FILE: Final = "receiving.md"
SECRET: Final = new_secret()
BODY: Final = '{"id":"evt_1","data":{"name":"Zoë"}}'.encode()


def test_the_document_has_the_code_of_every_language_as_it_is_tested() -> None:
    assert {block.heading: block.code for block in blocks(FILE) if block.heading in examples()} == examples()


async def test_the_first_receiver_takes_the_event_that_is_signed_by_hand(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with first_receiver(tmp_path) as (port, printed):
            assert " 204 " in await signed_by_hand(tmp_path, port, SECRET)
            assert await printed() == "deal.won {'deal_id': 7}"


async def test_the_first_receiver_refuses_what_another_secret_signed(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with first_receiver(tmp_path) as (port, _):
            assert " 400 no signature fits" in await signed_by_hand(tmp_path, port, new_secret())


@asynccontextmanager
async def first_receiver(folder: Path) -> AsyncGenerator[tuple[str, Any]]:
    """The document's receiver beside its verify.py: its port, and a function that waits for its next line."""
    (folder / "verify.py").write_text(examples()["Python"])
    (block,) = [block for block in under(FILE, "A first receiver") if block.fence == "python"]
    (folder / "receiver.py").write_text(block.code)
    surroundings = {"DEALIX_WEBHOOK_SECRET": SECRET, "PORT": "0"}
    process = await trio.lowlevel.open_process(
        [sys.executable, "receiver.py"], cwd=folder, env={**os.environ, **surroundings}, stdout=PIPE
    )
    output = process.stdout
    assert output is not None

    async def line() -> str:
        said = bytearray()
        while not said.endswith(b"\n"):
            said += await output.receive_some(1)
        return said.decode().rstrip()

    try:
        yield (await line()).rpartition(":")[2].removesuffix("/hook"), line
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await process.wait()


async def signed_by_hand(folder: Path, port: str, secret: str) -> str:
    """The first line of the answer to the document's curl."""
    (block,) = [block for block in under(FILE, "A first receiver") if block.fence == "sh"]
    surroundings = {"DEALIX_WEBHOOK_SECRET": secret, "PORT": port}
    ran = await trio.run_process(
        ["sh", "-eu", "-c", block.code], cwd=folder, env={**os.environ, **surroundings}, capture_stdout=True
    )
    return f"{ran.stdout.decode().splitlines()[0]} "


@pytest.mark.parametrize("library", ["standardwebhooks", "stripe"])
def test_the_libraries_verify_as_the_document_has_it(library: str) -> None:
    (block,) = [block for block in under(FILE, "With a library") if f"from {library} import" in block.code]
    program: dict[str, Any] = {}
    exec(block.code, program)

    def verified(body: bytes, secret: str) -> object:
        return program["verify"](body, _headers(), secret)

    other = new_secret()
    assert verified(BODY, SECRET) == {"id": "evt_1", "data": {"name": "Zoë"}}
    for body, secret in ((BODY + b" ", SECRET), (BODY, other)):
        with pytest.raises(Exception, match=r"(?i)signature") as refused:
            verified(body, secret)
        assert type(refused.value).__module__.partition(".")[0] == library


def _headers() -> dict[str, str]:
    signatures = Signer(SigningKey.of(SECRET)).sign(event_id="evt_1", body=BODY, t=int(time.time()))
    return dict(
        headers(
            event_id="evt_1",
            event_type="deal.won",
            attempt=1,
            dealix_signature=signatures.dealix,
            webhook_signature=signatures.webhook,
            t=signatures.t,
        )
    )


def test_an_id_is_remembered_once(migrated_database: str) -> None:
    ((_, _, code),) = under(FILE, "The same event twice")
    with psycopg.connect(migrated_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE seen_events (id text PRIMARY KEY)")
        connection.execute("CREATE TABLE deals (id integer PRIMARY KEY, stage text)")
        inserted: list[int] = []
        for _ in range(2):
            cursor = connection.execute(code.encode())
            cursor.nextset()  # past BEGIN
            inserted.append(cursor.rowcount)
    assert inserted == [1, 0]
