"""Whoever runs it, and wherever it lies: an ordinary account, and root under directories that are closed to others."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from daemon.embedded_postgres import EmbeddedPostgres, attached
from daemon.embedded_postgres.account import account_for
from daemon.embedded_postgres.installation import _copy
from daemon.embedded_postgres.processes import members
from daemon.errors import EmbeddedPostgresFailed
from tests.embedded.keeper import END_S, NOBODY, Keeper, Way, install, keeping, run_keeper, wait_until

UNKNOWN = 54321

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other accounts")


@pytest.fixture(scope="module")
def closed_home() -> Iterator[Path]:
    """A home of root's that nobody else may enter, with the installation and the data in it."""
    with tempfile.TemporaryDirectory(prefix="dealix-home-") as home:
        install(Path(home, "install"))
        yield Path(home)


@pytest.fixture(scope="module")
def cache() -> Iterator[Path]:
    """A place for the copy of the binaries, as systemd's CacheDirectory gives it: anybody may look, root may write."""
    with tempfile.TemporaryDirectory(prefix="dealix-cache-") as place:
        Path(place).chmod(0o755)
        yield Path(place)


@pytest.fixture(scope="module")
def nobodys_home() -> Iterator[Path]:
    """A home of an ordinary account with an installation of its own."""
    with tempfile.TemporaryDirectory(prefix="dealix-home-") as home:
        install(Path(home, "install"))
        for folder, _, _ in os.walk(home):
            os.chown(folder, NOBODY, NOBODY)
        yield Path(home)


def modes(*paths: Path) -> list[tuple[int, int]]:
    return [(stat.S_IMODE(found.st_mode), found.st_uid) for found in (path.stat() for path in paths)]


def uids(keeper: Keeper) -> set[int]:
    status = Path(f"/proc/{keeper.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("Uid:")]
    return {int(word) for word in line.split()[1:]}


def groups(keeper: Keeper) -> str:
    status = Path(f"/proc/{keeper.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("Groups:")]
    return line.removeprefix("Groups:").strip()


def test_root_runs_it_as_an_unprivileged_account_with_everything_closed_and_opens_nothing(
    closed_home: Path, cache: Path
) -> None:
    data_dir = closed_home / "data"
    way = Way(closed_home / "install", environment={"CACHE_DIRECTORY": str(cache)})
    parents = (closed_home, closed_home / "install", closed_home.parent, cache)
    before = modes(*parents)

    with keeping(data_dir, way=way) as keeper:
        assert 0 not in uids(keeper)
        assert groups(keeper) == ""
        while keeper.read() < 20:
            pass
        last = keeper.kill()
        wait_until(lambda: not members(data_dir / "pg18"), END_S)
    with attached(data_dir) as url, psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
        assert row in {(last,), (last + 1,)}
    assert modes(*parents) == before
    assert before[0] == (0o700, 0)


def test_roots_copy_of_the_binaries_is_made_once_and_can_be_changed_by_root_alone(
    closed_home: Path, cache: Path
) -> None:
    account = account_for(closed_home, closed_home / "pg18")
    copy = _copy(closed_home / "install", cache, account)
    made_at = copy.stat().st_ctime_ns
    assert _copy(closed_home / "install", cache, account) == copy
    assert list(cache.iterdir()) == [copy]
    assert copy.stat().st_ctime_ns == made_at
    assert copy.name.startswith("postgres-18.")
    assert not [path for path in copy.rglob("*") if path.stat().st_uid != 0 or path.stat().st_mode & 0o022]


def test_a_cache_that_others_can_change_is_not_run_from(closed_home: Path, home: Path) -> None:
    account = account_for(closed_home, closed_home / "pg18")
    home.chmod(0o777)
    with pytest.raises(EmbeddedPostgresFailed, match="can be changed by others than root"):
        _copy(closed_home / "install", home, account)
    home.chmod(0o755)
    os.chown(home, NOBODY, NOBODY)
    with pytest.raises(EmbeddedPostgresFailed, match="can be changed by others than root"):
        _copy(closed_home / "install", home, account)


def test_a_server_that_works_by_its_current_directory_can_do_everything(home: Path) -> None:
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    server = EmbeddedPostgres.start(home / "data")
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("CREATE TABLE rows (n int) WITH (autovacuum_vacuum_insert_threshold = 1)")
            with connection.cursor().copy("COPY rows FROM STDIN") as copy:
                copy.write("\n".join(map(str, range(100_000))) + "\n")
            connection.execute("SET max_parallel_workers_per_gather = 2")
            connection.execute("SET parallel_setup_cost = 0")
            connection.execute("SET parallel_tuple_cost = 0")
            connection.execute("SET min_parallel_table_scan_size = 0")
            plan = connection.execute("EXPLAIN (ANALYZE, FORMAT TEXT) SELECT sum(n) FROM rows").fetchall()
            assert any("Workers Launched: " in line and not line.endswith(" 0") for (line,) in plan)
            connection.execute("COPY rows TO '/dev/null'")
            connection.execute("CHECKPOINT")
            connection.execute("CREATE EXTENSION hstore")
            connection.execute("CREATE DATABASE another")

            def vacuumed() -> bool:
                row = connection.execute("SELECT autovacuum_count FROM pg_stat_user_tables").fetchone()
                return row is not None and row[0] > 0

            wait_until(vacuumed, within_s=10)
        os.kill(server.pid, 9)
        wait_until(server.ensure_running)
    finally:
        server.stop()


def test_an_ordinary_account_without_a_home_runs_it_in_its_own_directory(nobodys_home: Path) -> None:
    data_dir = nobodys_home / "data"
    way = Way(nobodys_home / "install", uid=NOBODY)
    with keeping(data_dir, way=way) as keeper:
        assert uids(keeper) == {NOBODY}
        program = Path(f"/proc/{keeper.pid}/exe").readlink()
        assert program.is_relative_to(nobodys_home)
        while keeper.read() < 20:
            pass
        last = keeper.kill()
        wait_until(lambda: not members(data_dir / "pg18"), END_S)
    with keeping(data_dir, "stop", way) as keeper:
        assert keeper.process.wait(10) == 0
    assert last >= 20
    assert {path.stat().st_uid for path in data_dir.iterdir()} == {NOBODY}


def test_root_that_helps_an_ordinary_account_leaves_its_data_usable(nobodys_home: Path) -> None:
    data_dir = nobodys_home / "helped"
    data_dir.mkdir(mode=0o700)
    os.chown(data_dir, NOBODY, NOBODY)
    with attached(data_dir) as url, psycopg.connect(url) as connection:  # we are root
        connection.execute("CREATE TABLE made_by_root (n int)")
    with keeping(data_dir, way=Way(nobodys_home / "install", uid=NOBODY)) as keeper:
        assert uids(keeper) == {NOBODY}
        with psycopg.connect(keeper.url) as connection:
            connection.execute("SELECT n FROM made_by_root")


def test_an_account_that_the_machine_does_not_know_is_refused_with_a_reason(home: Path) -> None:
    os.chown(home, UNKNOWN, UNKNOWN)
    with pytest.raises(EmbeddedPostgresFailed, match=f"uid {UNKNOWN} has no passwd entry"):
        EmbeddedPostgres.start(home)
    assert not (home / "pg18").exists()


def test_another_accounts_data_is_refused_with_a_reason(nobodys_home: Path) -> None:
    data_dir = nobodys_home / "foreign"
    (data_dir / "pg18").mkdir(parents=True, mode=0o700)  # root's
    os.chown(data_dir, NOBODY, NOBODY)
    process = run_keeper(data_dir, "stop", Way(nobodys_home / "install", uid=NOBODY))
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert f"pg18 belongs to uid 0, this process runs as uid {NOBODY}" in said
    with pytest.raises(EmbeddedPostgresFailed, match="belongs to root"):
        EmbeddedPostgres.start(data_dir)
