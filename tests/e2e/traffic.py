"""The two programs around a daemon, the receiver and the emitter, as processes with books that can be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from tests.support.daemon_process import ROOT, spawn, until

END_S: Final = 10.0
HERE: Final = Path(__file__).parent


class Book:
    """A file of JSON lines that another process writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def news(self) -> list[dict[str, Any]]:
        """The complete lines since the last look."""
        with self._path.open("rb") as file:
            file.seek(self._position)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


@dataclass(frozen=True, slots=True)
class Receipt:
    """One request as the receiver saw it, complete. `at` is `time.monotonic()`, which all processes share."""

    at: float
    name: str
    event_id: str
    attempt: int
    sha256: str
    status: int
    """What it was to be answered with; 0 where there was to be no answer."""
    signed: bool | None = None
    """Whether both signatures hold; None where the receiver does not know the secret."""
    age_s: float = 0.0
    """How old the time was that they are for, by the receiver's clock, when the request was complete."""

    @property
    def duty(self) -> tuple[str, str]:
        """Which event to which subscription."""
        return self.event_id, self.name

    @property
    def claim(self) -> tuple[str, str, int]:
        """Which attempt at the duty."""
        return self.event_id, self.name, self.attempt

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class Receiver:
    """The receiver program. `url("s1", delay_ms=5)` is an endpoint whose receipts have the name s1."""

    def __init__(self, port: int, book: Book, commands: IO[bytes] | None = None) -> None:
        self.port = port
        self._book = book
        self._commands = commands
        self._receipts: list[Receipt] = []
        self._answered: set[tuple[str, str]] = set()
        self._closed: list[tuple[float, Receipt]] = []
        self._telling = 0

    def url(self, name: str, *, status: int | str = 200, delay_ms: int = 3) -> str:
        """`status` may be a way to fail: flap, hang, drip, reset."""
        return f"http://127.0.0.1:{self.port}/{name}/{status}/{delay_ms}"

    def tell(self, name: str, **told: str) -> None:
        """The `secret` of an endpoint, or the `answer` that it gives from now on; returns when it holds."""
        assert self._commands is not None
        self._commands.write(json.dumps({"name": name, **told}).encode() + b"\n")
        self._commands.flush()
        self._telling += 1
        until(self._is_told, within_s=END_S, what="the receiver's word that it knows")

    def receipts(self, name: str | None = None) -> list[Receipt]:
        """Every request so far (to one endpoint), in the order in which they were complete."""
        self._read()
        return [r for r in self._receipts if name is None or r.name == name]

    def receipts_from(self, number: int) -> list[Receipt]:
        """Those after the first `number` ones."""
        self._read()
        return self._receipts[number:]

    def answered(self) -> set[tuple[str, str]]:
        """The duties that were answered with 2xx."""
        self._read()
        return self._answered

    def answers(self) -> list[tuple[float, Receipt]]:
        """When which request was answered."""
        self._read()
        return self._closed

    def wait_for(self, count: int, name: str | None = None, *, within_s: float = 10.0) -> list[Receipt]:
        """The receipts (of one endpoint), as soon as there are `count`."""

        def look() -> list[Receipt]:
            found = self.receipts(name)
            return found if len(found) >= count else []

        return until(look, within_s=within_s, what=f"{count} requests to {name or 'the receiver'}")

    def _is_told(self) -> bool:
        self._read()
        return self._telling == 0

    def _read(self) -> None:
        for line in self._book.news():
            if line["state"] == "told":
                self._telling -= 1
                continue
            receipt = Receipt(
                line["t"],
                line["name"],
                line["event_id"],
                line["attempt"],
                line["sha256"],
                line["status"],
                line.get("signed"),
                line.get("age_s", 0.0),
            )
            if line["state"] == "received":
                self._receipts.append(receipt)
                continue
            self._closed.append((line["t"], receipt))
            if receipt.is_success:
                self._answered.add(receipt.duty)


class Emitter:
    """The emitter program."""

    def __init__(self, process: subprocess.Popen[bytes], book: Book) -> None:
        self._process = process
        self._book = book
        self._seen: dict[str, dict[str, float]] = {}

    def finish(self) -> None:
        """Let it end what it began; nothing is emitted any more when this returns."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(END_S) == 0

    def events(self, outcome: str) -> dict[str, float]:
        """The ids of events that it saw "emitted" (before the COMMIT), "committed" or "rolled back", and when."""
        for line in self._book.news():
            self._seen.setdefault(line["outcome"], {})[line.get("event_id", line["t"])] = line["t"]
        return self._seen.get(outcome, {})

    def go_on(self, commits: int = 20) -> None:
        """Wait until it has committed so many more events. The bound is for a machine that has much else to do."""
        within_s = 20 + commits / 10
        wanted = len(self.events("committed")) + commits
        until(lambda: len(self.events("committed")) >= wanted, within_s=within_s, what=f"{commits} more commits")


@contextmanager
def open_receiver(directory: Path) -> Generator[Receiver]:
    """A receiver that ends with the block."""
    with _program("receiver_program.py", [], directory) as (process, book):
        first = until(book.news, within_s=END_S, what="the receiver's port")[0]
        yield Receiver(first["port"], book, process.stdin)


@contextmanager
def open_emitter(directory: Path, url: str, customers: Sequence[str], *, per_second: int) -> Generator[Emitter]:
    """An emitter on the database `url`, at work until `finish` or the end of the block."""
    with _program("emitter_program.py", [url, str(per_second), *customers], directory) as (process, book):
        yield Emitter(process, book)


@contextmanager
def _program(name: str, words: Sequence[str], directory: Path) -> Generator[tuple[subprocess.Popen[bytes], Book]]:
    path, stderr = directory / f"{name}.jsonl", directory / f"{name}.stderr"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    with path.open("ab") as stdout:
        command = [sys.executable, str(HERE / name), *words]
        process = spawn(command, stderr=stderr, environ=environ, stdout=stdout, stdin=subprocess.PIPE)
    try:
        yield process, Book(path)
    finally:
        process.kill()
        process.wait(END_S)
        assert process.stdin is not None
        process.stdin.close()
    assert stderr.read_text() == ""
