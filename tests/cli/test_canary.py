"""Planted secrets are in nothing that a command prints, whether it works or fails."""

from __future__ import annotations

import base64
import secrets
from typing import Final

import pytest

from tests.cli.conftest import Dealix, Ended
from tests.support.own_server import PASSWORD, OwnServer
from tests.support.postgres import fresh_database

NOWHERE: Final = f"postgresql://dealix:{PASSWORD}@127.0.0.1:9/postgres"
COMMANDS: Final = (
    ("check",),
    ("migrate",),
    ("keys", "list"),
    ("secrets", "list"),
    ("secrets", "rotate"),
    ("secrets", "drop", "0" * 16),
    ("keys", "revoke", "key_0"),
    ("emit", "--customer", "acme", "--type", "deal.won", "--data", "[1]"),
    ("customers", "purge", "acme", "--yes"),
    ("--help",),
    ("serve", "--help"),
    ("secrets", "rotate", "--help"),
)
FAULTY: Final[tuple[dict[str, str], ...]] = (
    {"DEALIX_DATABASE__URL": f"postgresql://dealix:{PASSWORD}@127.0.0.1:nonsense/x"},
    {"DEALIX_DATABASE__URL": f"postgresql://dealix:{PASSWORD} @127.0.0.1/x"},
    {"DEALIX_DATABASE__URL": f"mysql://dealix:{PASSWORD}@127.0.0.1/x"},
    {"DEALIX_DATABASE__DIRECT_URL": f"postgresql://dealix:{PASSWORD}@[::1/x"},
    {"DEALIX_EGRESS__PROXY_URL": f"http://user:{PASSWORD}@proxy:3128"},
    {"DEALIX_API__BIND": "nonsense"},
)


@pytest.mark.parametrize("own_cluster", ["18"], indirect=True)
def test_n95_no_command_prints_a_password_or_a_key_that_it_was_given(own_server: OwnServer, dealix: Dealix) -> None:
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    url = fresh_database(own_server.url)
    said: list[Ended] = [
        dealix(*words, DEALIX_SEALING_KEY=key, DEALIX_DATABASE__URL=database_url)
        for words in COMMANDS
        for database_url in (url, NOWHERE)
    ]
    assert {ended.code for ended in said} == {0, 1}
    api_key = dealix("keys", "create", "--ops", DEALIX_DATABASE__URL=url).out.strip()
    said += [dealix(*words) for words in COMMANDS]
    for broken in (key + "x", key[:-4], f"{key} {key[1:]}"):
        said.append(dealix("check", DEALIX_SEALING_KEY=broken))
        assert said[-1].code == 78
    for faulty in FAULTY:
        for words in (("serve",), ("check",)):
            said.append(dealix(*words, DEALIX_SEALING_KEY=key, **faulty))
            assert said[-1].code == 78, said[-1]
    for ended in said:
        for secret in (PASSWORD, key, key[1:-1], key.lower(), base64.b64decode(key).hex(), api_key[4:]):
            assert secret not in ended.out + ended.err, ended
