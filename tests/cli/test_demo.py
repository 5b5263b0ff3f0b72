"""`dealix demo` as a newcomer meets it: one command, a delivery that verifies, lines to paste, Ctrl-C."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from daemon.demo.receiver import standard_webhooks_holds, stripe_format_holds
from daemon.embedded_postgres.processes import members
from daemon.policy.signing import Signer, SigningKey
from tests.support.daemon_process import until
from tests.support.demo import LINE_S, Demo, demos_in

ARRIVED: Final = re.compile(
    r"\d\d:\d\d:\d\d  deal\.won  (?P<id>evt_[0-9a-f]{24})  attempt 1  "
    r"✓ Stripe format  ✓ Standard Webhooks  (?P<data>.*)"
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the demo is started: a directory whose name a shell would take apart."""
    made = tmp_path / 'it\'s a $(demo) of "5"'
    made.mkdir()
    return made


@pytest.fixture
def start(place: Path) -> Iterator[list[Demo]]:
    with demos_in(place) as demos:
        yield demos


def pasted(line: str) -> str:
    """What a line prints that somebody pastes into another terminal, somewhere else."""
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = subprocess.run(
        ["sh", "-c", line], cwd="/", env=environ, capture_output=True, text=True, timeout=LINE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(180)
@pytest.mark.parametrize("tools", [("sh", "curl", "psql"), ("sh", "curl")], ids=["psql", "only the psql of the wheel"])
def test_the_demo_shows_a_verified_delivery_and_lines_that_work_and_the_next_start_goes_on(
    place: Path, tmp_path: Path, start: list[Demo], monkeypatch: pytest.MonkeyPatch, tools: tuple[str, ...]
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in tools:
        (programs / name).symlink_to(shutil.which(name) or pytest.fail(f"this test needs {name}"))
    monkeypatch.setenv("PATH", str(programs))
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        except OSError:
            pass  # somebody else has it: all the same to the demo
        first = Demo(place, usual_port=True)
        start.append(first)
        lines = first.until("Each further delivery")
    assert f"Dealix Webhooks demo, data in {place}/.dealix" in lines
    assert "Port 8080 is taken: choosing another." in lines
    (arrival,) = [match for line in lines if (match := ARRIVED.fullmatch(line))]
    assert arrival["data"] == '{"deal_id": 7}'
    assert f"Emitted one event in SQL: {arrival['id']}" in lines
    curl, psql = (next(line.strip() for line in lines if tool in line) for tool in ("  curl", " dealix.emit("))
    (export,) = (line.strip() for line in lines if line.startswith("  export"))
    assert "ops" in pasted(f"{export}\nexec dealix keys list")
    assert '"pending": 1' in pasted(curl).replace('":1', '": 1')
    assert "(1 row)" in pasted(psql)
    further = [ARRIVED.fullmatch(line) for line in (first.line(), first.line(), first.line()) if line]
    assert sorted(match["data"] for match in further if match) == ['{"deal_id": 8}', '{"deal_id": 9}']
    assert first.end(signal.SIGINT)[-1] == "Stopping …"
    assert not members(place / ".dealix" / "pg18")
    for secret in ("demo.json", "sealing.key"):
        assert stat.S_IMODE((place / ".dealix" / secret).stat().st_mode) == 0o600

    second = Demo(place)
    start.append(second)
    again = second.until("Each further delivery")
    assert [line for line in again if line.startswith(("Ops key", "Receiver"))] == [
        line for line in lines if line.startswith(("Ops key", "Receiver"))
    ]
    assert len([line for line in again if ARRIVED.fullmatch(line)]) == 1
    second.end(signal.SIGTERM)


@pytest.mark.timeout(120)
def test_a_second_demo_on_the_same_data_is_refused_and_a_killed_one_leaves_nothing_running(
    place: Path, start: list[Demo]
) -> None:
    demo = Demo(place)
    start.append(demo)
    demo.until("Each further delivery")
    other = Demo(place)  # on the same data
    start.append(other)
    assert other.until("dealix: ") == [f"dealix: another demo is running on {place}/.dealix"]
    assert other.process.wait(LINE_S) == 1
    demo.process.kill()
    until(lambda: not members(place / ".dealix" / "pg18"), within_s=LINE_S, what="no Postgres is left")


SECRET: Final = "whsec_" + "QUJD" * 11
BODY: Final = b'{"api_version":"v1"}'


def test_the_receivers_checks_accept_what_is_signed_and_nothing_else() -> None:
    now = int(time.time())
    signed = Signer(SigningKey.of(SECRET), SigningKey.of("whsec_" + "Wlla" * 11), now + 60).sign(
        event_id="evt_1", body=BODY, t=now
    )
    headers = {"webhook-id": "evt_1", "webhook-timestamp": str(now), "webhook-signature": signed.webhook or ""}
    assert stripe_format_holds(SECRET, signed.dealix, BODY, now)
    assert standard_webhooks_holds(SECRET, headers, BODY, now)
    for secret, body, at in (
        (SECRET, BODY + b" ", now),
        ("whsec_" + "AAAA" * 11, BODY, now),
        (SECRET, BODY, now + 301),
    ):
        assert not stripe_format_holds(secret, signed.dealix, body, at)
        assert not standard_webhooks_holds(secret, headers, body, at)
    for header in ("", "t=", f"t={now}", f"t={now},v0={'0' * 64}", f"t={now},t={now},v1=x", "v1=é,t=²", "t=-1,v1="):
        assert not stripe_format_holds(SECRET, header, BODY, now)
    for change in (
        {"webhook-id": "evt_2"},
        {"webhook-timestamp": "x"},
        {"webhook-signature": "v1,é"},
        {"webhook-signature": ""},
    ):
        assert not standard_webhooks_holds(SECRET, headers | change, BODY, now)


@pytest.mark.timeout(120)
def test_a_daemon_that_does_not_start_is_told_with_the_end_of_its_log(place: Path, start: list[Demo]) -> None:
    (place / ".dealix").mkdir(mode=0o700)
    (place / ".dealix" / "sealing.key").write_text("damaged")
    (place / ".dealix" / "sealing.key").chmod(0o600)
    demo = Demo(place)
    start.append(demo)
    lines = demo.until("dealix: ")
    assert lines[-1] == f"dealix: the daemon ended with 78; its log, {place}/.dealix/demo.log, ends:"
    assert "should be the base64 text of 32 bytes" in (demo.line() or "")
    assert demo.process.wait(LINE_S) == 1
