"""What the service says to systemd, on real sockets, and the unit that ships."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from config.settings import load
from daemon.systemd import Notifier, credentials_dir, passed_fds, watchdog_s, without_systemd

UNIT: Final = Path(__file__).parent.parent / "systemd/dealix.service"
PID: Final = str(os.getpid())


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, Notifier]]:
    """The socket that systemd would listen on, and a notifier that knows its address."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@dealix-test-{PID}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.settimeout(5)
        yield sock, Notifier.of({"NOTIFY_SOCKET": address})


def test_each_state_is_one_datagram_in_the_managers_words(manager: tuple[socket.socket, Notifier]) -> None:
    sock, notifier = manager
    notifier.ready("serving\non 127.0.0.1:8080")
    notifier.status("database away")
    notifier.watchdog()
    notifier.stopping("draining")
    notifier.extend_timeout(1.5)
    assert [sock.recv(4096) for _ in range(5)] == [
        b"READY=1\nSTATUS=serving on 127.0.0.1:8080",
        b"STATUS=database away",
        b"WATCHDOG=1",
        b"STOPPING=1\nSTATUS=draining",
        b"EXTEND_TIMEOUT_USEC=1500000",
    ]


def test_a_reload_carries_the_monotonic_time(manager: tuple[socket.socket, Notifier]) -> None:
    sock, notifier = manager
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    after_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    state, stamp = sock.recv(4096).decode().splitlines()
    assert state == "RELOADING=1"
    assert before_us <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= after_us


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_outside_systemd_nothing_is_said(environ: dict[str, str]) -> None:
    assert Notifier.of(environ).address is None
    Notifier.of(environ).ready("up")


def test_a_manager_that_is_gone_or_does_not_read_harms_nobody(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier.of({"NOTIFY_SOCKET": address})
    notifier.watchdog()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.setblocking(False)
        queue = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
        for _ in range(queue + 1):
            Notifier.of({"NOTIFY_SOCKET": address}).watchdog()
        started = time.monotonic()
        notifier.watchdog()
        assert time.monotonic() - started < 2
    notifier.watchdog()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": PID}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
    ],
)
def test_the_watchdogs_interval_is_seconds_or_none(environ: dict[str, str], expected: float | None) -> None:
    assert watchdog_s(environ) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, []),
        ({"LISTEN_FDS": "2", "LISTEN_PID": PID}, [3, 4]),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "1"}, []),
        ({"LISTEN_FDS": "2"}, []),
        ({"LISTEN_FDS": "x", "LISTEN_PID": PID}, []),
    ],
)
def test_passed_sockets_are_those_meant_for_this_process(environ: dict[str, str], expected: list[int]) -> None:
    assert list(passed_fds(environ)) == expected


def test_a_passed_socket_can_be_served_from() -> None:
    """As systemd does it: the socket is descriptor 3 of the new process, which is the one that LISTEN_PID names."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        program = (
            "import os, socket\nfrom daemon.systemd import passed_fds\n"
            "os.environ['LISTEN_PID'] = str(os.getpid())\n"
            "print(*[socket.socket(fileno=fd).getsockname() for fd in passed_fds(os.environ)])"
        )
        spawn = (
            "import os, sys\nos.dup2(int(sys.argv[1]), 3)\n"
            "os.execv(sys.executable, [sys.executable, '-c', sys.argv[2]])"
        )
        done = subprocess.run(
            [sys.executable, "-c", spawn, str(server.fileno()), program],
            pass_fds=[server.fileno()],
            env={**os.environ, "LISTEN_FDS": "1", "PYTHONPATH": str(UNIT.parent.parent)},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert done.stdout.strip() == str(server.getsockname())


def test_children_get_an_environment_that_cannot_speak_for_the_service() -> None:
    environ = {
        "PATH": "/bin",
        "NOTIFY_SOCKET": "/run/n",
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
        "LISTEN_FDNAMES": "a",
        "WATCHDOG_USEC": "1",
        "WATCHDOG_PID": "1",
        "CREDENTIALS_DIRECTORY": "/run/c",
    }
    assert without_systemd(environ) == {"PATH": "/bin"}


def test_the_credentials_directory_is_where_systemd_says() -> None:
    assert credentials_dir({"CREDENTIALS_DIRECTORY": "/run/credentials/dealix.service"}) == Path(
        "/run/credentials/dealix.service"
    )
    assert credentials_dir({}) is None


def tool() -> None:
    """Skips, or fails in CI, where systemd's tool is not installed."""
    if shutil.which("systemd-analyze") is None:
        (pytest.fail if "CI" in os.environ else pytest.skip)("systemd-analyze is not installed")


def verified(directory: Path, *units: str, change: Callable[[str], str] = lambda text: text) -> str:
    """What `systemd-analyze verify` prints about these units, all of ours being there; `change` is made to each."""
    tool()
    for path in UNIT.parent.glob("dealix*.[so]*"):
        _ = (directory / path.name).write_text(change(installed_here(path.read_text())))
    command = ["systemd-analyze", "verify", "--man=no", *(str(directory / unit) for unit in units)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout + done.stderr


def installed_here(unit: str) -> str:
    """The unit with its program where one is: the check wants an existing file, and /opt/dealix is the operator's."""
    return unit.replace("/opt/dealix/.venv/bin/dealix", sys.executable)


@pytest.mark.parametrize("unit", ["dealix.service", "dealix.socket", "dealix@8081.service", "dealix@8081.socket"])
def test_systemd_finds_nothing_to_say_about_the_units(tmp_path: Path, unit: str) -> None:
    assert verified(tmp_path, unit) == ""


def test_the_check_of_the_units_can_fail(tmp_path: Path) -> None:
    wrong = {"Restart=always": "Restart=sometimes", sys.executable: "/nowhere/dealix", "127.0.0.1:8080": "nowhere:x"}
    for right, change in wrong.items():
        assert verified(tmp_path, "dealix.service", change=lambda text, a=right, b=change: text.replace(a, b)) != ""


def exposure(path: Path) -> float:
    """The score of `systemd-analyze security`: 0 is closed, 10 is open."""
    tool()
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    (score,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    return float(score)


@pytest.mark.parametrize("unit", ["dealix.service", "dealix@.service"])
def test_a_daemon_that_is_broken_into_can_do_little(unit: str) -> None:
    assert exposure(UNIT.with_name(unit)) <= 1.5


def test_the_score_tells_a_unit_that_is_open(tmp_path: Path) -> None:
    weaker = tmp_path / "dealix.service"
    _ = weaker.write_text(
        UNIT.read_text().replace("CapabilityBoundingSet=\n", "").replace("ProtectSystem=strict\n", "")
    )
    assert exposure(weaker) > 1.5


def test_the_unit_for_several_daemons_differs_in_its_name_alone() -> None:
    """So that what is hardened in one is hardened in both."""
    one, several = UNIT.read_text().splitlines(), UNIT.with_name("dealix@.service").read_text().splitlines()
    settings = [line for line in one if not line.startswith("#")]
    assert [line.replace(" (%i)", "").replace("@%i", "") for line in several if not line.startswith("#")] == settings


def test_the_units_configuration_is_valid() -> None:
    assert load(UNIT.with_name("dealix.toml"), {}).log.format == "json"
