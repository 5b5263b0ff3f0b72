"""The bench's receiver counts right, however the bytes are cut: the bench's figures stand on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).parents[2] / "bench/receiver.c"
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"
POST: Final = b"POST /hook HTTP/1.1\r\nHost: x\r\ncontent-length: 5\r\n\r\nhello"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        (pytest.fail if "CI" in os.environ else pytest.skip)("no C compiler")
    path = tmp_path_factory.mktemp("receiver") / "receiver"
    _ = subprocess.run(["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-o", path, SOURCE], check=True, timeout=50)
    return path


@pytest.fixture
def receiver(program: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The running receiver on three addresses, and its port."""
    with subprocess.Popen([program, "3"], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        yield running, json.loads(running.stdout.readline())["port"]
        running.kill()


def summary(running: subprocess.Popen[str], number: signal.Signals) -> dict[str, float]:
    running.send_signal(number)
    assert running.stdout is not None
    return json.loads(running.stdout.readline())


def answered(sock: socket.socket, count: int) -> bytes:
    text = b""
    while len(text) < count * len(OK) and (more := sock.recv(65536)):
        text += more
    return text


def test_every_post_is_answered_and_counted_however_its_bytes_are_cut(
    receiver: tuple[subprocess.Popen[str], int],
) -> None:
    running, port = receiver
    for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        with socket.create_connection((host, port), timeout=5) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in POST:
                sock.sendall(bytes([byte]))
            assert answered(sock, 1) == OK
            sock.sendall(POST * 3 + POST[:40])
            assert answered(sock, 3) == OK * 3
            sock.sendall(POST[40:])
            assert answered(sock, 1) == OK
    so_far = summary(running, signal.SIGUSR1)
    assert (so_far["requests"], so_far["connections"], so_far["broken"]) == (15, 3, 0)
    assert 0 < so_far["first_s"] < so_far["last_s"]
    assert summary(running, signal.SIGTERM)["requests"] == 15
    assert running.wait(timeout=10) == 0


def test_what_is_no_countable_post_is_not_counted(receiver: tuple[subprocess.Popen[str], int]) -> None:
    running, port = receiver
    for text in (b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"x" * 20_000):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(text)
            sock.shutdown(socket.SHUT_WR)
            assert OK not in answered(sock, 1)
    assert summary(running, signal.SIGTERM) | {"cpu_s": 0} == {
        "requests": 0,
        "connections": 3,
        "broken": 2,
        "first_s": 0,
        "last_s": pytest.approx(0, abs=1e9),
        "cpu_s": 0,
    }


def test_what_arrives_is_noted_with_its_time_and_paths_choose_what_becomes_of_it(program: Path, tmp_path: Path) -> None:
    log = tmp_path / "arrivals"
    with subprocess.Popen([program, "2", "0", log], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        port = json.loads(running.stdout.readline())["port"]
        before = time.monotonic_ns()
        with socket.create_connection(("127.0.0.2", port), timeout=5) as sock:
            sock.sendall(POST.replace(b"Host: x", b"webhook-id: evt_1"))
            assert answered(sock, 1) == OK
            sock.sendall(POST.replace(b"Host: x", b"webhook-id: evt_2").replace(b"/hook", b"/fail/7"))
            assert sock.recv(100).startswith(b"HTTP/1.1 500 ")
            sock.settimeout(0.2)
            sock.sendall(POST.replace(b"Host: x", b"webhook-id: evt_3").replace(b"/hook", b"/hang/8"))
            with pytest.raises(TimeoutError):
                sock.recv(1)
        after = time.monotonic_ns()
        assert summary(running, signal.SIGUSR1)["requests"] == 3
        lines = [line.split(" ") for line in log.read_text().splitlines()]
        running.kill()
    assert [line[1:] for line in lines] == [
        ["evt_1", "2", "/hook"],
        ["evt_2", "2", "/fail/7"],
        ["evt_3", "2", "/hang/8"],
    ]
    assert before < int(lines[0][0]) < int(lines[1][0]) < int(lines[2][0]) < after
