"""`dealix subscriptions import`: everything or nothing, all faults at once, and again without harm."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from tests.cli.conftest import Dealix, Ended

STANDARD = "whsec_" + "QUJD" * 11
URL_SAFE = "whsec_" + "Q-J_" * 10 + "QUI"


def line(n: int, **fields: object) -> str:
    record = {
        "id": f"whk_{n:024x}",
        "customer_id": "acme",
        "endpoint_url": f"https://example.com/{n}",
        "events": ["deal.won"],
        "description": None,
        "secret": STANDARD,
        "enabled": True,
    }
    return json.dumps({key: value for key, value in (record | fields).items() if value != "left out"}) + "\n"


def stored(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as db:
        return db.execute(
            "SELECT id, customer_id, endpoint_url, events, enabled FROM dealix.subscriptions ORDER BY id"
        ).fetchall()


def test_a_file_is_imported_once_however_often_it_is_given(
    on_database: Dealix, migrated_database: str, tmp_path: Path
) -> None:
    file = tmp_path / "subscriptions.jsonl"
    file.write_text(
        line(1)
        + "\n"
        + line(2, enabled=False, customer_id="bolt", events="left out", description="left out")
        + line(3, endpoint_url="HTTPS://Example.COM", events=["deal.won", "lead.created", "deal.won"])
    )
    assert on_database("subscriptions", "import", str(file)) == Ended(0, "imported 3, unchanged 0\n", "")
    expected = [
        (f"whk_{1:024x}", "acme", "https://example.com/1", ["deal.won"], True),
        (f"whk_{2:024x}", "bolt", "https://example.com/2", [], False),
        (f"whk_{3:024x}", "acme", "https://example.com/", ["deal.won", "lead.created"], True),
    ]
    assert stored(migrated_database) == expected
    file.write_text(file.read_text() + line(4))
    assert on_database("subscriptions", "import", str(file)) == Ended(0, "imported 1, unchanged 3\n", "")
    assert stored(migrated_database)[:3] == expected


def test_secrets_that_do_not_fit_standard_webhooks_are_imported_and_named(on_database: Dealix) -> None:
    ended = on_database("subscriptions", "import", "-", stdin=line(1) + line(2, secret=URL_SAFE))
    assert ended.code == 0
    assert "imported 2, unchanged 0" in ended.out
    assert "1 secrets are not standard base64" in ended.out
    assert f"  whk_{2:024x}\n" in ended.out
    assert f"whk_{1:024x}" not in ended.out
    assert URL_SAFE not in ended.out


FAULTS = [
    ("not json", "JSON is malformed"),
    ("[]", "Expected `object`, got `array`"),
    (line(1, id="left out"), "missing required field `id`"),
    (line(1, colour="red"), "unknown field `colour`"),
    (line(1, enabled="yes"), "Expected `bool`, got `str` - at `$.enabled`"),
    (line(1, id="whk_1"), "id: must be whk_ and 24 hex digits"),
    (line(1, customer_id="a b"), "customer_id: must be 1 to 64"),
    (line(1, endpoint_url="http://example.com/"), "endpoint_url: must be https"),
    (line(1, endpoint_url="https://127.0.0.1/"), "endpoint_url: host 127.0.0.1 is"),
    (line(1, endpoint_url="https://u:p@example.com/"), "endpoint_url: contains a user name"),
    (line(1, description="x" * 256), "description: must be at most 255"),
    (line(1, description="a\x00b"), "description: must be"),
    (line(1, secret="QUJD"), "secret: must be whsec_"),
    (line(1, secret="whsec_"), "secret: must be whsec_"),
    (line(1, secret="whsec_é"), "secret: must be whsec_"),
    (line(1, events=["deal.won", "deal.lots"]), "events: unknown type 'deal.lots'"),
]


@pytest.mark.parametrize(("text", "fault"), FAULTS)
def test_a_bad_line_is_told_by_its_number_and_nothing_is_imported(
    on_database: Dealix, migrated_database: str, text: str, fault: str
) -> None:
    ended = on_database("subscriptions", "import", "-", stdin=line(7) + text.rstrip("\n") + "\n" + line(8))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("dealix: line 2: ")
    assert fault in ended.err
    assert ended.err.endswith("Nothing was imported.\n")
    assert stored(migrated_database) == []


def test_all_faults_of_a_file_come_at_once_and_in_order(on_database: Dealix) -> None:
    text = line(1, secret="x", id="y") + line(2) + "{\n" + line(2) + line(3, endpoint_url="ftp://x")
    ended = on_database("subscriptions", "import", "-", stdin=text)
    assert ended.code == 1
    assert [entry.split(":")[0] for entry in ended.err.removeprefix("dealix: ").splitlines()] == [
        "line 1", "line 1", "line 3", "line 4", "line 5", "Nothing was imported."
    ]  # fmt: skip
    assert "line 4: id: the same as in line 2" in ended.err


def test_ids_that_exist_with_other_contents_are_all_named_and_nothing_is_imported(
    on_database: Dealix, migrated_database: str
) -> None:
    on_database("subscriptions", "import", "-", stdin=line(1) + line(2))
    before = stored(migrated_database)
    text = line(3) + line(1, secret=URL_SAFE) + line(2, customer_id="bolt")
    ended = on_database("subscriptions", "import", "-", stdin=text)
    assert ended.code == 1
    assert f"line 2: whk_{1:024x} exists already, with other secret" in ended.err
    assert f"line 3: whk_{2:024x} exists already, with other customer_id" in ended.err
    assert stored(migrated_database) == before


def test_no_customer_gets_more_than_a_hundred(on_database: Dealix, migrated_database: str) -> None:
    text = "".join(line(n) for n in range(1, 103))
    ended = on_database("subscriptions", "import", "-", stdin=text)
    assert ended.code == 1
    assert "line 101: customer acme would have more than 100 subscriptions" in ended.err
    assert "line 102: " in ended.err
    assert stored(migrated_database) == []


def test_what_is_no_list_of_lines_is_refused_before_it_is_read_whole(on_database: Dealix) -> None:
    ended = on_database("subscriptions", "import", "-", stdin=line(1) + "x" * 100_000)
    assert ended.code == 1
    assert "line 2: has more than 64 KiB; is this JSON Lines?" in ended.err


def test_localhost_may_be_imported_where_the_configuration_allows_it(on_database: Dealix) -> None:
    text = line(1, endpoint_url="http://localhost:9000/hook")
    assert on_database("subscriptions", "import", "-", stdin=text).code == 1
    assert on_database("subscriptions", "import", "-", stdin=text, DEALIX_EGRESS__ALLOW_LOCALHOST="true").code == 0
