"""The life of an embedded server: first start, next start, stop, and everything that is refused with a reason."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from daemon.embedded_postgres import EmbeddedPostgres, attached, running_url
from daemon.embedded_postgres.account import account_for
from daemon.embedded_postgres.address import socket_directory
from daemon.embedded_postgres.cluster import Cluster
from daemon.embedded_postgres.lock import LockTaken
from daemon.embedded_postgres.log_file import LIMIT_BYTES
from daemon.embedded_postgres.processes import members
from daemon.errors import EmbeddedPostgresFailed
from tests.embedded.keeper import keeping, run_keeper, wait_until


def ask(url: str, query: str) -> object:
    """The first column of the first row."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


def tell(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    running = EmbeddedPostgres.start(data_dir)
    yield running
    running.stop()


def test_the_first_start_makes_the_data_and_the_next_one_finds_it(home: Path) -> None:
    data_dir = home / "made" / "dealix"
    first = EmbeddedPostgres.start(data_dir)
    tell(first.url, "CREATE TABLE found (n int)", "INSERT INTO found VALUES (7)")
    first.stop()

    second = EmbeddedPostgres.start(data_dir)
    try:
        assert ask(second.url, "SELECT n FROM found") == 7
        assert second.url == first.url
    finally:
        second.stop()
    assert "automatic recovery" not in (data_dir / "pg18.log").read_text()


def test_the_database_and_its_superuser_are_called_dealix(server: EmbeddedPostgres) -> None:
    assert server.url.startswith("postgresql://dealix@/dealix?host=/")
    assert ask(server.url, "SELECT current_database() || ' ' || current_user") == "dealix dealix"


def test_what_is_committed_is_durable_and_checked(server: EmbeddedPostgres) -> None:
    for setting in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
        assert ask(server.url, f"SHOW {setting}") == "on"


def test_text_is_utf8_sorts_by_code_point_and_knows_letters_beyond_ascii(server: EmbeddedPostgres) -> None:
    assert ask(server.url, "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'dealix'") == "UTF8"
    assert ask(server.url, "SELECT 'Z' < 'a'") is True
    assert ask(server.url, "SELECT lower('ÄÖÜ')") == "äöü"


def test_a_transaction_can_be_prepared(server: EmbeddedPostgres) -> None:
    tell(server.url, "BEGIN", "CREATE TABLE twice (n int)", "PREPARE TRANSACTION 'p'", "ROLLBACK PREPARED 'p'")


def test_the_only_way_in_is_a_socket_in_a_directory_of_its_own_account(
    server: EmbeddedPostgres, data_dir: Path
) -> None:
    assert ask(server.url, "SHOW listen_addresses") == ""
    home = (data_dir / "pg18").stat()
    assert stat.S_IMODE(home.st_mode) == 0o700
    assert home.st_uid == account_for(data_dir, data_dir / "pg18").uid != 0
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    for name in ("pg18.lock", "pg18.log", "pg18.address"):
        assert stat.S_IMODE((data_dir / name).stat().st_mode) == 0o600


def test_variables_of_postgres_in_our_environment_change_nothing(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "6543", "PGDATABASE": "other", "PGHOST": "/nowhere", "PGUSER": "eve"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DEALIX_TEST__SECRET", "for our eyes only")
    with attached(data_dir) as url:
        assert ask(url, "SELECT current_user") == "dealix"
        pid = members(data_dir / "pg18")[0].pid
        assert b"for our eyes only" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_stop_leaves_nothing_running_and_a_second_one_does_nothing(data_dir: Path) -> None:
    server = EmbeddedPostgres.start(data_dir)
    with psycopg.connect(server.url) as open_transaction:
        open_transaction.execute("SELECT 1")
        server.stop()
        assert members(data_dir / "pg18") == []
        with pytest.raises(psycopg.OperationalError):
            open_transaction.execute("SELECT 1")
    server.stop()
    assert server.pid == 0
    with pytest.raises(EmbeddedPostgresFailed, match="stopped"):
        server.ensure_running()
    assert "database system is shut down" in (data_dir / "pg18.log").read_text().splitlines()[-1]


def test_a_server_that_cannot_shut_down_is_killed_and_keeps_what_was_committed(data_dir: Path) -> None:
    server = EmbeddedPostgres.start(data_dir)
    tell(server.url, "CREATE TABLE kept_by_force (n int)", "INSERT INTO kept_by_force VALUES (1)")
    (checkpointer,) = [m.pid for m in members(data_dir / "pg18") if "checkpointer" in m.title]
    os.kill(checkpointer, signal.SIGSTOP)  # no shutdown without it
    begun = time.monotonic()
    server.stop(timeout_s=0.2)
    assert time.monotonic() - begun < 10
    assert members(data_dir / "pg18") == []
    with attached(data_dir) as url:
        assert ask(url, "SELECT n FROM kept_by_force") == 1


def test_other_processes_find_the_server_while_it_runs_and_only_then(data_dir: Path, home: Path) -> None:
    assert running_url(home) is None
    assert running_url(data_dir) is None
    server = EmbeddedPostgres.start(data_dir)
    try:
        assert running_url(data_dir) == server.url
    finally:
        server.stop()
    assert running_url(data_dir) is None


def test_attaching_uses_the_running_server_and_leaves_it_running(server: EmbeddedPostgres, data_dir: Path) -> None:
    with attached(data_dir) as url:
        assert url == server.url
    assert ask(server.url, "SELECT 1") == 1


def test_attaching_without_a_server_runs_one_for_the_block(data_dir: Path) -> None:
    with attached(data_dir) as url:
        assert ask(url, "SELECT 1") == 1
        assert running_url(data_dir) == url
    assert members(data_dir / "pg18") == []


def test_a_server_that_runs_for_one_block_stays_until_its_guests_have_left(data_dir: Path) -> None:
    answers: list[object] = []
    with ExitStack() as guest:

        def leave() -> None:
            with guest:
                answers.append(ask(url, "SELECT 1"))

        with attached(data_dir) as hosts:
            url = guest.enter_context(attached(data_dir))
            assert url == hosts
            leaving = threading.Timer(0.5, leave)
            leaving.start()
        leaving.join()
    assert answers == [1]
    assert members(data_dir / "pg18") == []


def test_commands_at_once_without_a_daemon_do_not_stop_the_server_under_each_other(data_dir: Path) -> None:
    processes = [run_keeper(data_dir, "attach") for _ in range(4)]
    assert [(process.communicate(timeout=30)[0], process.returncode) for process in processes] == [("1000\n", 0)] * 4
    assert members(data_dir / "pg18") == []


def test_a_second_server_on_the_same_data_fails_and_names_the_first_ones_keeper(
    server: EmbeddedPostgres, data_dir: Path
) -> None:
    with pytest.raises(LockTaken, match=rf"pg18\.lock is still held after 0\.\d s, by pid {os.getpid()} \("):
        EmbeddedPostgres.start(data_dir, timeout_s=0.2)
    assert ask(server.url, "SELECT 1") == 1


def test_a_second_server_waits_for_the_real_end_of_the_first(data_dir: Path) -> None:
    with keeping(data_dir) as keeper:
        row = keeper.read()
        threading.Timer(0.4, keeper.process.kill).start()
        server = EmbeddedPostgres.start(data_dir, timeout_s=10)
        try:
            assert server.pid != keeper.pid
            count = ask(server.url, f"SELECT count(*) FROM kept WHERE n <= {row}")
            assert isinstance(count, int)
            assert count >= row
        finally:
            server.stop()


def cluster_directory(data_dir: Path) -> Path:
    """An empty one, owned by the account that a server would have."""
    path = data_dir / "pg18"
    account = account_for(data_dir, path)
    path.mkdir(mode=0o700)
    os.chown(path, account.uid, account.gid)
    return path


def test_data_of_another_version_is_refused(home: Path) -> None:
    (cluster_directory(home) / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedPostgresFailed, match=r"pg18 holds data of Postgres 17, .* brings 18"):
        EmbeddedPostgres.start(home)


def test_an_older_cluster_beside_is_not_passed_over_with_an_empty_one(home: Path) -> None:
    marker = home / "pg17" / "PG_VERSION"
    marker.parent.mkdir()
    marker.write_text("17\n")
    with pytest.raises(EmbeddedPostgresFailed, match=r"holds pg17, .*pg_dump"):
        EmbeddedPostgres.start(home)
    assert not (home / "pg18").exists()


def test_a_directory_with_something_else_in_it_is_refused(home: Path) -> None:
    (cluster_directory(home) / "letter.txt").write_text("dear")
    with pytest.raises(EmbeddedPostgresFailed, match="not empty"):
        EmbeddedPostgres.start(home)
    assert (home / "pg18" / "letter.txt").read_text() == "dear"


def test_an_initdb_that_was_interrupted_leaves_no_half_cluster(home: Path) -> None:
    process = run_keeper(home)
    try:
        wait_until((home / "pg18.init" / "PG_VERSION").exists, within_s=20)
    finally:
        process.kill()
        process.communicate()
    assert not (home / "pg18").exists()
    with attached(home) as url:
        assert ask(url, "SELECT 1") == 1
    assert not (home / "pg18.init").exists()


def test_a_path_too_long_for_a_socket_gets_a_short_private_name(home: Path) -> None:
    data_dir = home / ("long" * 30) / "dealix"
    server = EmbeddedPostgres.start(data_dir)
    try:
        link = Path(server.url.partition("host=")[2].partition("&")[0])
        assert link.readlink() == data_dir / "pg18"
        assert stat.S_IMODE(link.parent.stat().st_mode) == 0o700
        assert ask(server.url, "SELECT 1") == 1
        assert running_url(data_dir) == server.url

        link.unlink()  # a cleaner of old temporary files
        link.parent.rmdir()
        assert running_url(data_dir) is None
        assert server.ensure_running() is False
        assert running_url(data_dir) == server.url
    finally:
        server.stop()
    assert not link.parent.exists()


def test_a_short_name_that_somebody_else_holds_is_not_used(home: Path) -> None:
    cluster = Cluster(home / ("long" * 30))
    first = socket_directory(cluster)
    first.parent.chmod(0o755)  # now others may look into it: it could as well be theirs
    try:
        second = socket_directory(cluster)  # in the other place
    except EmbeddedPostgresFailed as e:
        second = None
        fault = str(e)
    else:
        fault = ""
        second.unlink()
        second.parent.rmdir()
    first.unlink()
    first.parent.rmdir()
    assert (second is not None and second.parent.parent != first.parent.parent) or "not this account's alone" in fault


def test_stale_pid_files_that_name_a_living_stranger_do_not_keep_the_server_down(data_dir: Path) -> None:
    with attached(data_dir):
        pass
    account = account_for(data_dir, data_dir / "pg18")
    uid = account.uid if account.switched else None
    with subprocess.Popen(["sleep", "60"], user=uid, cwd="/") as stranger:
        try:
            for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                (data_dir / "pg18" / name).write_text(
                    f"{stranger.pid}\n/proc/self/cwd\n1790000000\n5432\n.\n\n\nready\n"
                )
            assert running_url(data_dir) is None
            with attached(data_dir) as url:
                assert ask(url, "SELECT 1") == 1
        finally:
            stranger.kill()


def test_a_start_that_fails_quotes_the_log_and_leaves_the_data_free(data_dir: Path) -> None:
    with attached(data_dir) as url:
        tell(url, "ALTER SYSTEM SET shared_preload_libraries = 'no_such_thing'")
    with pytest.raises(EmbeddedPostgresFailed, match=r"ended with 1; .*pg18\.log says:\n(?s:.*)no_such_thing"):
        EmbeddedPostgres.start(data_dir)
    (data_dir / "pg18" / "postgresql.auto.conf").write_text("")
    with attached(data_dir) as url:
        assert ask(url, "SELECT 1") == 1


def test_a_changed_setting_of_the_operator_survives_a_restart(data_dir: Path) -> None:
    with attached(data_dir) as url:
        tell(url, "ALTER SYSTEM SET work_mem = '5MB'", "ALTER SYSTEM SET port = 6000")
    with attached(data_dir) as url:
        assert ask(url, "SHOW work_mem") == "5MB"
        tell(url, "ALTER SYSTEM RESET ALL")


def test_the_log_holds_no_payload(server: EmbeddedPostgres, data_dir: Path) -> None:
    canary = "canary-5f0d"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE TEMP TABLE once (payload text UNIQUE)")
        connection.execute("INSERT INTO once VALUES (%s)", [canary])
        with pytest.raises(psycopg.errors.UniqueViolation, match="duplicate"):
            connection.execute("INSERT INTO once VALUES (%s)", [canary])
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            connection.execute("SELECT %s::json", [f'{{"a": {canary}'])
        with pytest.raises(psycopg.errors.SyntaxError):
            connection.execute(f"SELEKT '{canary}'".encode())
    written = (data_dir / "pg18.log").read_text()
    assert "duplicate key" in written
    assert canary not in written


def test_the_log_stays_small(server: EmbeddedPostgres, data_dir: Path) -> None:
    log = data_dir / "pg18.log"
    with log.open("ab") as file:
        file.write(b"x" * LIMIT_BYTES)
    assert server.ensure_running() is False
    assert log.stat().st_size == 0
    assert (data_dir / "pg18.log.1").stat().st_size > LIMIT_BYTES
    with pytest.raises(psycopg.errors.DivisionByZero):
        ask(server.url, "SELECT 1 / 0")
    wait_until(lambda: b"division by zero" in log.read_bytes())
    assert b"\0" not in log.read_bytes()


def test_a_log_that_is_another_name_of_somebody_elses_file_is_not_written(home: Path) -> None:
    victim = home / "victim"
    victim.write_text("precious")
    for plant in (os.link, os.symlink):
        data_dir = home / plant.__name__
        data_dir.mkdir()
        plant(victim, data_dir / "pg18.log")
        with pytest.raises(EmbeddedPostgresFailed, match=r"pg18\.log"):
            EmbeddedPostgres.start(data_dir)
    assert victim.read_text() == "precious"


def test_a_start_from_another_thread_is_a_broken_promise(data_dir: Path) -> None:
    raised: list[BaseException] = []

    def start() -> None:
        try:
            EmbeddedPostgres.start(data_dir)
        except RuntimeError as e:
            raised.append(e)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])
