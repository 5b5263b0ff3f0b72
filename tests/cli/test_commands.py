"""The commands as a person meets them: what they print, with which code they end, and what they say when they fail."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from daemon.store.migrate import known
from tests.cli.conftest import Dealix, Ended
from tests.support.postgres import fresh_database

KEY: Final = re.compile(r"dlx_[A-Za-z0-9_-]{43}\n")
SUBSCRIPTION: Final = json.dumps(
    {
        "id": "whk_" + "a" * 24,
        "customer_id": "acme",
        "endpoint_url": "https://example.com/",
        "secret": "whsec_" + "c2VjcmV0" * 5,
    }
)
COMMANDS: Final = (
    ("serve",),
    ("demo",),
    ("migrate",),
    ("keys", "create"),
    ("keys", "list"),
    ("keys", "revoke"),
    ("secrets", "list"),
    ("secrets", "rotate"),
    ("secrets", "drop"),
    ("customers", "purge"),
    ("emit",),
    ("listen",),
    ("trigger",),
    ("replay",),
    ("deliveries", "tail"),
    ("db-url",),
    ("check",),
    ("subscriptions", "import"),
)


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as db:
        return db.execute(query.encode()).fetchall()


def assert_told_in_a_line_or_two(ended: Ended, code: int) -> None:
    assert ended.code == code
    assert ended.out == ""
    assert ended.err.startswith("dealix: ")
    assert ended.err.count("\n") <= 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_takes_config(dealix: Dealix, command: tuple[str, ...]) -> None:
    ended = dealix(*command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "--config FILE" in ended.out
    assert ended.out.startswith(f"Usage: dealix {' '.join(command)} [OPTIONS]")


def test_the_overview_names_every_command_and_the_exit_codes(dealix: Dealix) -> None:
    ended = dealix("--help")
    assert ended.code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command[0]} ", ended.out, re.MULTILINE)
    assert "0 success, 1 failure, 2 wrong usage, 78 faulty configuration" in " ".join(ended.out.split())


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_printed_alone_and_listed_without_itself(on_database: Dealix) -> None:
    made = on_database("keys", "create", "--customer", "acme")
    assert (made.code, made.err) == (0, "")
    assert KEY.fullmatch(made.out)
    assert KEY.fullmatch(on_database("keys", "create", "--ops").out)
    listed = on_database("keys", "list")
    assert made.out.strip() not in listed.out
    head, first, second = listed.out.splitlines()
    assert head.split() == ["ID", "WHOSE", "CREATED", "LAST", "USED", "STATE"]
    assert re.fullmatch(r"key_[0-9a-f]{24}  customer acme  \S+Z  never      valid", first)
    assert re.fullmatch(r"key_[0-9a-f]{24}  ops            \S+Z  never      valid", second)


def test_a_revoked_key_is_listed_as_revoked(on_database: Dealix) -> None:
    on_database("keys", "create", "--ops")
    key_id = on_database("keys", "list").out.splitlines()[1].split()[0]
    assert on_database("keys", "revoke", key_id) == Ended(0, f"{key_id} is revoked.\n", "")
    assert re.search(r"revoked \S+Z$", on_database("keys", "list").out.rstrip())


def test_a_key_that_expires_is_listed_with_its_end(on_database: Dealix, migrated_database: str) -> None:
    assert on_database("keys", "create", "--ops", "--expires-in-days", "90").code == 0
    state = "SELECT round(extract(epoch FROM expires_at - created_at) / 86400) FROM dealix.api_keys"
    assert rows(migrated_database, state) == [(90,)]
    assert re.search(r"never      valid until \S+Z$", on_database("keys", "list").out.rstrip())
    with psycopg.connect(migrated_database) as db:
        db.execute("UPDATE dealix.api_keys SET expires_at = now()")
    assert re.search(r"never      expired \S+Z$", on_database("keys", "list").out.rstrip())
    assert on_database("keys", "create", "--ops", "--expires-in-days", "0").code == 2


# ── secrets and customers: tests/e2e has them with daemons beside ────────────────────────────────────────────────────


def test_sealing_keys_are_listed_with_what_needs_them_and_never_themselves(
    on_database: Dealix, migrated_database: str
) -> None:
    on_database("subscriptions", "import", "-", stdin=SUBSCRIPTION)
    listed = on_database("secrets", "list")
    key = (Path(os.environ["DEALIX_DATA_DIR"]) / "sealing.key").read_text().strip()
    head, only = listed.out.splitlines()
    assert head.split() == ["ID", "DOES", "NEEDED", "BY"]
    assert re.fullmatch(r"[0-9a-f]{16}  seals    1 subscriptions", only)
    assert key not in listed.out + on_database("secrets", "rotate").out + on_database("secrets", "list").out
    (Path(os.environ["DEALIX_DATA_DIR"]) / "sealing.key").unlink()
    strange = on_database("secrets", "list").out.splitlines()
    assert [line.split()[1] for line in strange] == ["DOES", "seals", "MISSING"]
    assert_told_in_a_line_or_two(on_database("secrets", "rotate"), 1)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("secrets", "drop", "0" * 16), 1, "no sealing key with the ID"),
        (("secrets", "rotate", "--key-file", "-"), 78, "--key-file: should be the base64 text of 32 bytes"),
        (("secrets", "rotate", "--wait-s", "-1"), 2, "--wait-s"),
        (("customers", "purge", "not a customer"), 2, "must be 1 to 64 characters"),
        (("customers", "purge"), 2, "Missing argument 'ID'"),
    ],
)
def test_what_is_wrong_with_sealing_keys_and_customers_is_told(
    on_database: Dealix, words: tuple[str, ...], code: int, text: str
) -> None:
    ended = on_database(*words)
    assert (ended.code, ended.out) == (code, "")
    assert text in ended.err


def test_the_key_that_seals_is_not_dropped_and_one_that_was_sealing_is_not_rotated_to(on_database: Dealix) -> None:
    old = on_database("secrets", "list").out.splitlines()[1].split()[0]
    key = (Path(os.environ["DEALIX_DATA_DIR"]) / "sealing.key").read_text()
    assert "is the key that seals" in on_database("secrets", "drop", old).err
    assert on_database("secrets", "rotate").code == 0
    again = on_database("secrets", "rotate", "--key-file", "-", stdin=key)
    assert (again.code, again.err) == (1, f"dealix: {old} was a sealing key before: give a new one\n")


def test_a_purge_asks_first_prints_a_receipt_and_finds_nothing_the_next_time(
    on_database: Dealix, migrated_database: str
) -> None:
    on_database("subscriptions", "import", "-", stdin=SUBSCRIPTION)
    on_database("keys", "create", "--customer", "acme")
    on_database("emit", "--customer", "acme", "--type", "deal.won", "--data", "{}")
    for answer in ("n\n", ""):
        ended = on_database("customers", "purge", "acme", stdin=answer)
        assert (ended.code, ended.out) == (130, "")
        assert "Delete everything of customer acme?" in ended.err
    assert rows(migrated_database, "SELECT count(*) FROM dealix.events") == [(1,)]
    ended = on_database("customers", "purge", "acme", stdin="y\n")
    assert ended.code == 0
    assert re.match(r"Purged customer acme at \S+Z: 5 rows\.\napi_keys +1\nevents +1\n", ended.out)
    again = on_database("customers", "purge", "acme", "--yes", "--json")
    assert again.err == ""
    receipt = json.loads(again.out)
    assert (receipt["customer_id"], receipt["rows"], receipt["total"]) == ("acme", {}, 0)


def test_revoking_what_is_not_there_says_where_to_look(on_database: Dealix) -> None:
    ended = on_database("keys", "revoke", "key_" + "0" * 24)
    assert_told_in_a_line_or_two(ended, 1)
    assert "dealix keys list" in ended.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("keys", "create"), "either --customer ID or --ops"),
        (("keys", "create", "--ops", "--customer", "acme"), "either --customer ID or --ops"),
        (("keys", "create", "--customer", "a b"), "must be 1 to 64 characters"),
        (("keys", "revoke", "dlx_secret"), "Give its ID"),
        (("emit", "--customer", "acme", "--type", "deal.won"), "--data"),
        (("emit", "--customer", "", "--type", "deal.won", "--data", "{}"), "must be 1 to 64 characters"),
        (("subscriptions", "import", "/not/there"), "No such file"),
        (("nonsense",), "No such command"),
        (("serve", "--nonsense"), "No such option"),
    ],
)
def test_wrong_usage_is_2_and_says_what_is_right(dealix: Dealix, arguments: tuple[str, ...], text: str) -> None:
    ended = dealix(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert text in ended.err


# ── emit ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_is_emitted_as_it_was_written_and_its_id_printed(on_database: Dealix, migrated_database: str) -> None:
    payload = '{ "n": 1.0, "é": ' + "7" * 5000 + " }"
    ended = on_database("emit", "--customer", "acme", "--type", "deal.won", "--data", payload)
    assert (ended.code, ended.err) == (0, "")
    (row,) = rows(migrated_database, "SELECT id, data FROM dealix.events")
    assert row == (ended.out.split()[0], payload)
    assert ended.out == f"{row[0]}  matched 0\n"


def test_an_event_comes_from_standard_input_and_its_own_id_keeps_it_single(
    on_database: Dealix, migrated_database: str
) -> None:
    arguments = ("emit", "--customer", "acme", "--type", "deal.won", "--event-id", "order-7", "--data", "-")
    for _ in range(2):
        assert on_database(*arguments, stdin='{"a": "ü"}\n') == Ended(0, "order-7  matched 0\n", "")
    assert rows(migrated_database, "SELECT data FROM dealix.events") == [('{"a": "ü"}\n',)]
    other = on_database(*arguments, stdin="{}")
    assert_told_in_a_line_or_two(other, 1)
    assert "already emitted with another type or payload" in other.err


@pytest.mark.parametrize(
    ("event_type", "data", "text"),
    [
        ("deal.lots", "{}", "event_type 'deal.lots': not a known event type"),
        ("deal.won", "[]", "payload is a JSON array: must be an object"),
        ("deal.won", '{"a": }', "--data is not valid JSON: Expecting value: line 1 column 7 (char 6)"),
        ("deal.won", "", "--data is not valid JSON"),
        ("deal.won", '{"a": NaN}', "payload is not valid JSON"),
        ("deal.won", '{"a": "\udcff"}', "payload contains a NUL or a lone surrogate, which is not text"),
        ("deal.won", '{"a": "\\ud800"}', "surrogate"),
        ("deal.won", '{"a": ' + "[" * 5000 + "]" * 5000 + "}", "nested more than 100 deep"),
        ("deal.won", '{"a": "' + "x" * 262144 + '"}', "at most 262144 (256 KiB) are allowed"),
    ],
)
def test_a_refused_event_is_told_in_a_line(on_database: Dealix, event_type: str, data: str, text: str) -> None:
    ended = on_database("emit", "--customer", "acme", "--type", event_type, "--data", "-", stdin=data)
    assert_told_in_a_line_or_two(ended, 1)
    assert text in ended.err


# ── the database ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_migrate_makes_schema_and_partitions_and_then_finds_nothing_to_do(dealix: Dealix, embedded_server: str) -> None:
    url = fresh_database(embedded_server)
    first = dealix("migrate", DEALIX_DATABASE__URL=url)
    assert first.code == 0
    assert [line.removeprefix("applied ") for line in first.out.splitlines()[:-1]] == [m.name for m in known()]
    assert first.out.splitlines()[-1] == "The schema is up to date; 184 partitions were made."
    assert dealix("migrate") == Ended(0, "The schema is up to date.\n", "")


def test_a_command_on_a_database_without_schema_makes_it_unless_that_is_not_wanted(
    dealix: Dealix, embedded_server: str
) -> None:
    url = fresh_database(embedded_server)
    refused = dealix("keys", "list", DEALIX_DATABASE__URL=url, DEALIX_DATABASE__MIGRATE="false")
    assert_told_in_a_line_or_two(refused, 1)
    assert "run `dealix migrate`" in refused.err
    assert dealix("keys", "list", DEALIX_DATABASE__MIGRATE="true").code == 0
    assert dealix("emit", "--customer", "a", "--type", "deal.won", "--data", "{}").code == 0


def test_a_schema_of_a_newer_program_is_left_alone(on_database: Dealix, migrated_database: str) -> None:
    with psycopg.connect(migrated_database, autocommit=True) as db:
        db.execute("INSERT INTO dealix.schema_migrations VALUES (9000, '9000_of_tomorrow', 'x')")
    for command in (("keys", "list"), ("migrate",)):
        ended = on_database(*command)
        assert_told_in_a_line_or_two(ended, 1)
        assert "newer than this program" in ended.err


def test_a_database_that_is_away_is_told_within_seconds_and_without_its_password(dealix: Dealix) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"postgresql://dealix:canary@127.0.0.1:{closed.getsockname()[1]}/dealix"
        for command in (("keys", "list"), ("migrate",), ("emit", "--customer", "a", "--type", "b", "--data", "{}")):
            ended = dealix(*command, DEALIX_DATABASE__URL=url)
            assert_told_in_a_line_or_two(ended, 1)
            assert "Connection refused" in ended.err
            assert "canary" not in ended.err


def test_a_right_that_is_missing_is_told_with_its_sqlstate(dealix: Dealix, migrated_database: str) -> None:
    with psycopg.connect(migrated_database, autocommit=True) as db:
        db.execute("DROP ROLE IF EXISTS nobodys")
        db.execute("CREATE ROLE nobodys LOGIN")
        try:
            url = conninfo_to_dict(migrated_database)
            ended = dealix(
                "keys",
                "list",
                DEALIX_DATABASE__URL=f"postgresql://nobodys@/{url['dbname']}?host={url['host']}&port={url['port']}",
            )
            assert_told_in_a_line_or_two(ended, 1)
            assert "permission denied for schema dealix (SQLSTATE 42501)" in ended.err
        finally:
            db.execute("DROP ROLE nobodys")


def test_db_url_prints_the_url_alone_with_its_password(dealix: Dealix) -> None:
    url = "postgresql://dealix:p%40ss@db1,db2/dealix?target_session_attrs=read-write"
    assert dealix("db-url", DEALIX_DATABASE__URL=url) == Ended(0, url + "\n", "")


def test_db_url_of_an_embedded_database_that_does_not_run_says_how_to_start_it(dealix: Dealix) -> None:
    ended = dealix("db-url")
    assert_told_in_a_line_or_two(ended, 1)
    assert "start it with `dealix serve`" in ended.err


# ── configuration ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", [("check",), ("serve",), ("demo",), ("keys", "list"), ("db-url",), ("migrate",)])
def test_a_faulty_configuration_is_78_with_every_fault(
    dealix: Dealix, tmp_path: Path, command: tuple[str, ...]
) -> None:
    file = tmp_path / "dealix.toml"
    file.write_text("[delivery]\ntimeout_s = -1\n[databse]\nurl = 'x'\n")
    ended = dealix(*command, "--config", str(file), DEALIX_API__BIND="nowhere")
    assert (ended.code, ended.out) == (78, "")
    assert ended.err.startswith("dealix: the configuration has faults:\n")
    for key in ("delivery.timeout_s", "databse", "api.bind"):
        assert key in ended.err


def test_a_config_file_that_is_not_there_is_78(dealix: Dealix) -> None:
    ended = dealix("check", "--config", "/not/there.toml")
    assert ended.code == 78
    assert "/not/there.toml: No such file or directory" in ended.err


@pytest.mark.threat("N90")
def test_a_sealing_key_that_others_may_read_is_78(
    on_database: Dealix, bare_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sealing.key").write_text("x")
    (tmp_path / "sealing.key").chmod(0o644)
    ended = on_database("subscriptions", "import", "-", DEALIX_DATA_DIR=str(tmp_path))
    assert_told_in_a_line_or_two(ended, 78)
    assert "chmod 600" in ended.err


def test_a_reader_that_goes_away_ends_the_command_without_noise() -> None:
    command = [sys.executable, "-m", "daemon", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1
