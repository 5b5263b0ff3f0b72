"""Whatever is killed: nothing is left running, and every committed row comes back."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from daemon.embedded_postgres import EmbeddedPostgres, attached, running_url
from daemon.embedded_postgres.processes import members
from tests.embedded.keeper import END_S, keeping, run_keeper, wait_until


def committed_rows(url: str) -> int:
    """The highest row, after a look that none below it is missing."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(DISTINCT n), coalesce(max(n), 0) FROM kept").fetchone()
    assert row is not None
    assert row[0] == row[1]
    return int(row[1])


def busy_backend(url: str) -> int:
    """The pid of a backend that computes for minutes and looks neither at its client nor at its postmaster."""
    started = threading.Event()
    pids: list[int] = []

    def compute() -> None:
        with suppress(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as connection:
            pids.append(connection.info.backend_pid)
            started.set()
            connection.execute("DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$")

    threading.Thread(target=compute, daemon=True).start()
    assert started.wait(5)
    time.sleep(0.1)  # into its loop
    return pids[0]


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/cwd").exists()  # a zombie has none


def test_a_killed_daemon_leaves_nothing_running_and_loses_no_committed_row(data_dir: Path) -> None:
    with keeping(data_dir) as keeper:
        while keeper.read() < 50:
            pass
        last = keeper.kill()
        wait_until(lambda: not members(data_dir / "pg18"), END_S)
        assert not is_alive(keeper.pid)
        assert running_url(data_dir) is None
    with attached(data_dir) as url:
        assert last >= 50
        assert committed_rows(url) in {last, last + 1}  # one may have been committed and not been said


def test_a_daemon_that_merely_exits_leaves_nothing_running_either(data_dir: Path) -> None:
    with keeping(data_dir) as keeper:
        assert keeper.process.stdout is not None
        keeper.process.stdout.close()  # its next print fails, and it ends with a traceback and no stop
        assert keeper.process.wait(5) != 0
        wait_until(lambda: not members(data_dir / "pg18"), END_S)


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(data_dir: Path) -> None:
    with keeping(data_dir) as keeper:
        os.killpg(keeper.process.pid, signal.SIGINT)  # what a terminal does, to the whole foreground group
        for _ in range(20):
            keeper.read()
        assert is_alive(keeper.pid)


def test_a_killed_postmaster_is_started_again_with_every_committed_row(data_dir: Path) -> None:
    server = EmbeddedPostgres.start(data_dir)
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS kept")
            connection.execute("CREATE TABLE kept AS SELECT n FROM generate_series(1, 1000) n")
            assert server.ensure_running() is False
            url, pid = server.url, server.pid
            os.kill(pid, signal.SIGKILL)
            wait_until(server.ensure_running)  # False until the kernel says that it has ended
            assert (server.url, server.ensure_running()) == (url, False)
            assert server.pid != pid
            wait_until(lambda: running_url(data_dir) == url)  # recovery may take longer than a look after it waits
            assert committed_rows(url) == 1000
            with pytest.raises(psycopg.OperationalError):  # the old session is gone for good
                connection.execute("SELECT 1")
    finally:
        server.stop()


def test_a_busy_orphan_of_a_killed_postmaster_does_not_keep_the_next_one_out(data_dir: Path) -> None:
    server = EmbeddedPostgres.start(data_dir)
    try:
        orphan = busy_backend(server.url)
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: len(members(data_dir / "pg18")) == 1)  # the idle ones leave by themselves
        assert is_alive(orphan)
        begun = time.monotonic()
        assert server.ensure_running() is True
        assert time.monotonic() - begun < 2
        assert not is_alive(orphan)
    finally:
        server.stop()


def test_a_busy_orphan_of_a_killed_daemon_does_not_keep_the_next_one_out(data_dir: Path) -> None:
    with keeping(data_dir) as keeper:
        orphan = busy_backend(keeper.url)
        os.kill(keeper.pid, signal.SIGKILL)
        last = keeper.kill()
        assert is_alive(orphan)
        with attached(data_dir) as url:
            assert not is_alive(orphan)
            assert committed_rows(url) in {last, last + 1}


def test_a_crash_of_one_backend_is_left_to_postgres_itself(data_dir: Path) -> None:
    server = EmbeddedPostgres.start(data_dir)
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            os.kill(connection.info.backend_pid, signal.SIGKILL)
            wait_until(lambda: running_url(data_dir) is not None)
        assert server.ensure_running() is False
    finally:
        server.stop()


def test_killing_daemons_at_any_moment_of_their_start_never_breaks_the_data(data_dir: Path) -> None:
    for delay_ms in (30, 90, 150, 200, 250, 300, 350, 420):
        process = run_keeper(data_dir)
        time.sleep(delay_ms / 1000)
        process.kill()
        process.communicate()
    with attached(data_dir) as url:
        committed_rows(url)
