"""The log: asserted on the bytes that reach the stream."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import Log
from daemon import log

Format = Literal["auto", "json", "console"]
Level = Literal["debug", "info", "warning", "error"]
Written = Callable[[], str]
Opened = Callable[..., Written]


@pytest.fixture(autouse=True)
def libraries_as_before() -> Iterator[None]:
    """Pytest hangs its own handlers on the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Configures the log to write into a file, and returns how to read it."""
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as stream:

        def opened(level: Level = "info", log_format: Format = "json") -> Written:
            log.configure(Log(level=level, format=log_format), stream)
            return path.read_text

        yield opened
        log.configure(Log(), sys.stderr)


def lines(written: Written) -> list[dict[str, object]]:
    return [json.loads(line) for line in written().splitlines()]


def test_a_line_is_one_json_object_with_time_level_part_event_and_keys_in_this_order(opened: Opened) -> None:
    written = opened()
    log.get("sender").info("attempt.failed", status=500, error="no “answer”\n", duration_ms=1.5)
    (line,) = written().splitlines()
    assert line.isascii()
    entry = json.loads(line)
    assert list(entry) == ["time", "level", "part", "event", "status", "error", "duration_ms"]
    assert entry["error"] == "no “answer”\n"
    assert entry["time"].endswith("Z")
    assert abs(datetime.fromisoformat(entry["time"]) - datetime.now(UTC)) < timedelta(minutes=1)


def test_lines_below_the_level_are_not_written_and_a_reload_changes_the_level_of_living_loggers(opened: Opened) -> None:
    logger = log.get("x")
    written = opened("warning")
    logger.info("a.happened")
    logger.warning("b.happened")
    _ = opened("debug")
    logger.debug("c.happened")
    assert [line["event"] for line in lines(written)] == ["b.happened", "c.happened"]


def test_an_exception_is_told_without_the_values_of_its_variables(opened: Opened) -> None:
    for log_format in ("json", "console"):
        written = opened(log_format=log_format)
        local = "canary-in-a-local"
        try:
            _ = {}[len(local)]
        except KeyError:
            log.get("x").exception("task.died")
        assert "KeyError: 17" in written()
        assert "canary" not in written().replace('local = "canary-in-a-local"', "")


def test_every_exception_of_a_group_is_told(opened: Opened) -> None:
    written = opened()
    group = ExceptionGroup("several", [ValueError("first"), OSError("second")])
    log.get("x").error("task.died", exc_info=group)
    assert "ValueError: first" in str(lines(written)[0]["exception"])
    assert "OSError: second" in str(lines(written)[0]["exception"])


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.threat("N95")
def test_what_looks_like_a_secret_never_reaches_the_stream(opened: Opened, log_format: Format) -> None:
    written = opened("debug", log_format)
    log.get("x").info(
        "thing.happened",
        secret="canary1",
        new_secrets=["canary2"],
        Authorization="Bearer canary3",
        api_key=b"canary4",
        nested={"deep": {"password": "canary5"}},
        text="whsec_canary6+/= and dlx_canary7-_x",
        urls=["postgresql://u:canary8@h,h2:5432/d", "postgres://u:canary9@x/y@h/d", "http://u:canary10@proxy:3128"],
        conninfo="host=h password='canary11 x' user=u",
        headers=[("authorization", "Bearer canary12")],
    )
    broken = RuntimeError("connect to postgresql://u:canary13@h/d?password=canary14 failed")
    log.get("x").error("thing.failed", exc_info=broken)
    logging.getLogger("some.library").error("token %s", "whsec_canary15")
    text = written()
    assert "canary" not in text.replace('u:canary13@h/d?password=canary14 failed")', "")
    assert "thing.failed" in text
    assert "postgresql://u:***@h,h2:5432/d" in text
    assert text.count("whsec_***") == 2


def test_what_is_no_secret_stays(opened: Opened) -> None:
    written = opened()
    log.get("x").info("key.created", key_id="whk_0", keys=["a"], secret=None, url="https://h:8443", at="a@b", token="")
    entry = lines(written)[0]
    assert {k: entry[k] for k in ("key_id", "keys", "secret", "url", "at", "token")} == {
        "key_id": "whk_0",
        "keys": ["a"],
        "secret": None,
        "url": "https://h:8443",
        "at": "a@b",
        "token": "",
    }


def test_libraries_are_heard_from_warning_up_whatever_the_level_is(opened: Opened) -> None:
    written = opened("debug")
    library = logging.getLogger("hypercorn.error")
    library.info("Running on http://127.0.0.1")
    library.warning("odd: %s", "thing")
    library.log(45, "between levels")
    library.error("wrong arguments %d", "x")
    library.error("died", exc_info=ValueError("inside"))
    found = lines(written)
    assert [(line["level"], line["text"]) for line in found[:2]] == [
        ("warning", "odd: thing"),
        ("error", "between levels"),
    ]
    assert str(found[2]["text"]).startswith("'wrong arguments %d'")
    assert "ValueError: inside" in str(found[3]["exception"])
    assert {line["part"] for line in found} == {"hypercorn.error"}


def test_a_terminal_gets_lines_for_eyes_and_a_file_gets_json(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        log.configure(Log(), terminal)
        log.get("x").info("delivery.failed", error="evil \x1b[2J\r text")
        shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "delivery.failed" in shown
    assert not shown.startswith("{")
    assert "\x1b[2J" not in shown
    assert "\r text" not in shown
    log.configure(Log(), sys.stderr)


def test_a_closed_or_full_stream_loses_the_line_and_harms_nobody() -> None:
    with contextlib.suppress(OSError), Path("/dev/full").open("w", encoding="utf-8") as stream:
        log.configure(Log(format="json"), stream)
        log.get("x").info("disk.was_full")
    log.get("x").info("stream.was_closed")
    log.configure(Log(), sys.stderr)


@given(st.dictionaries(st.text(st.characters(codec="ascii", categories=["L"]), min_size=1), st.text() | st.binary()))
@pytest.mark.threat("N68")
def test_any_keys_and_texts_make_one_line(keys: dict[str, str | bytes]) -> None:
    """Lone surrogates, control characters, line separators: all there is in text."""
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        log.configure(Log(format="json"), stream)
        log.get("x").info("a.happened", **{f"k_{name}": value for name, value in keys.items()})
    with os.fdopen(ours, "rb") as read:
        line = read.read()
    assert re.fullmatch(rb"[\x20-\x7e]*\n", line)
    assert json.loads(line)["event"] == "a.happened"
    log.configure(Log(), sys.stderr)
