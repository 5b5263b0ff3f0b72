"""Planted secrets are looked for everywhere that somebody else might look: logs, answers, processes, a dump, a core."""

from __future__ import annotations

import base64
import json
import os
import resource
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from daemon.embedded_postgres import running_url
from daemon.embedded_postgres.account import account_for
from daemon.embedded_postgres.installation import binaries_for
from daemon.embedded_postgres.processes import members
from tests.e2e.traffic import Receiver
from tests.support.daemon_process import ROOT, DaemonProcess, Installation, until
from tests.support.own_server import PASSWORD, OwnServer
from tests.support.postgres import fresh_database

BASE: Final = "/api/v1/ecosystem"
ANY_OWN_SERVER = pytest.mark.parametrize("own_cluster", ["18"], indirect=True)
LOUD: Final = {"DEALIX_LOG__LEVEL": "debug", "DEALIX_LOG__ATTEMPTS": "all"}


def canary(kind: str) -> str:
    """A text that stands nowhere else."""
    return f"canary{kind}{secrets.token_hex(8)}"


class Planted:
    """What must not be found: `secrets` nowhere at all; `data`, which is the customers' own, only in their tables."""

    def __init__(self, sealing_key: str) -> None:
        self.imported = "whsec_" + base64.b64encode(canary("secret").encode() + b"12").decode().rstrip("=")
        self.wrong_key = "dlx_" + canary("key").ljust(43, "x")
        self.secrets: dict[str, str] = {
            "imported secret": self.imported.removeprefix("whsec_"),
            "wrong key": self.wrong_key.removeprefix("dlx_"),
            "database password": PASSWORD,
            "sealing key": sealing_key,
        }
        self.path, self.query, self.payload = canary("path"), canary("query"), canary("payload")
        self.data = {"url path": self.path, "url query": self.query, "payload": self.payload}

    def keep(self, what: str, secret: str) -> str:
        """Watch for one more, which was made by the product."""
        self.secrets[what] = secret.removeprefix("whsec_").removeprefix("dlx_")
        return secret

    def found_in(self, text: str, *, data: bool = True) -> list[str]:
        """Which of them a text has, as it is or as the hex that a dump shows bytes in."""
        wanted = self.secrets | (self.data if data else {})
        return [what for what, mark in wanted.items() if mark in text or mark.encode().hex() in text.lower()]


def key_bytes_in(text: str, sealing_key: str) -> bool:
    return base64.b64decode(sealing_key).hex() in text.lower()


def ask(daemon: DaemonProcess, method: str, path: str, key: str, body: object = None) -> httpx.Response:
    content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    return httpx.request(method, f"{daemon.api}{path}", content=content, headers=headers, timeout=20)


def go_wrong(daemon: DaemonProcess, planted: Planted, key: str, subscription_id: str, url: str) -> list[httpx.Response]:
    """Requests that are refused in every way there is, each with something planted in it; their answers."""
    event = {"customer_id": "acme", "event_type": "deal.won", "payload": {"a": planted.payload}, "event_id": "order-7"}
    answers = [
        ask(daemon, "GET", f"{BASE}/webhooks", planted.wrong_key),
        ask(daemon, "GET", f"{BASE}/webhooks?customer_id=acme&key={planted.wrong_key}", key),
        ask(daemon, "GET", f"{BASE}/deliveries?customer_id=acme&cursor={planted.query}", key),
        ask(daemon, "POST", f"{BASE}/webhooks", key, f'{{"endpoint_url": "{planted.path}'.encode()),
        ask(daemon, "POST", f"{BASE}/webhooks", key, {"customer_id": "acme", "endpoint_url": f"ftp://{planted.path}/"}),
        ask(daemon, "POST", f"{BASE}/webhooks", key, {"customer_id": "acme", "secret": planted.imported}),
        ask(daemon, "PATCH", f"{BASE}/webhooks/{subscription_id}", key, {"events": [planted.payload]}),
        ask(daemon, "POST", f"{BASE}/events/emit", key, event | {"event_type": planted.payload}),
        ask(daemon, "POST", f"{BASE}/events/emit", key, event | {"payload": planted.payload}),
        ask(daemon, "POST", f"{BASE}/events/emit", key, event | {"payload": {"a": planted.payload, "b": "\x00"}}),
        ask(daemon, "GET", f"/{planted.path}?{planted.query}", key),
        ask(daemon, "POST", f"/healthz?{planted.query}", key),
    ]
    assert ask(daemon, "POST", f"{BASE}/events/emit", key, event).status_code == 202
    answers.append(ask(daemon, "POST", f"{BASE}/events/emit", key, event | {"payload": {"other": planted.payload}}))
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("ALTER TABLE dealix.daily_stats RENAME TO away")
        answers.append(ask(daemon, "GET", f"{BASE}/stats?customer_id=acme", key))
        db.execute("ALTER TABLE dealix.away RENAME TO daily_stats")
        db.execute("ALTER TABLE dealix.event_keys RENAME TO away")
        answers.append(ask(daemon, "POST", f"{BASE}/events/emit", key, event | {"event_id": "order-8"}))
        db.execute("ALTER TABLE dealix.away RENAME TO event_keys")
        for text in (planted.payload, json.dumps(event), json.dumps({"customer_id": planted.payload})):
            db.execute("SELECT pg_notify('dealix_emit', %s)", [text])
    assert {answer.status_code for answer in answers} >= {400, 401, 404, 405, 409, 422, 500}
    return answers


def deliver(daemon: DaemonProcess, receiver: Receiver, planted: Planted, key: str, url: str) -> list[str]:
    """Endpoints that answer well and badly, with a secret in path and query; the ids of their subscriptions."""
    made: list[str] = []
    for answer in ("200", "500", "404", "reset", "410"):
        endpoint = f"http://127.0.0.1:{receiver.port}/{planted.path}-{answer}/{answer}/1"
        created = ask(daemon, "POST", f"{BASE}/webhooks", key, {"customer_id": "acme", "endpoint_url": endpoint})
        planted.keep(f"secret of {answer}", created.json()["secret"])
        made.append(created.json()["id"])
    nowhere = f"http://127.0.0.1:9/{planted.path}?token={planted.query}"
    created = ask(daemon, "POST", f"{BASE}/webhooks", key, {"customer_id": "acme", "endpoint_url": nowhere})
    made.append(created.json()["id"])
    rotated = ask(daemon, "POST", f"{BASE}/webhooks/{made[0]}/rotate-secret", key, {}).json()
    planted.keep("rotated secret", rotated["secret"])
    ask(daemon, "POST", f"{BASE}/webhooks/{made[-1]}/test", key, {})
    with psycopg.connect(url, autocommit=True) as db:
        for _ in range(3):
            db.execute("SELECT * FROM dealix.emit('acme', 'deal.won', %s::text)", [json.dumps({"a": planted.payload})])
        until(
            lambda: db.execute("SELECT count(*) FROM dealix.attempts").fetchall()[0][0] >= 12, within_s=15, what="log"
        )
        seal = "UPDATE dealix.subscriptions SET secret_sealed = 'damaged', enabled = true, disabled_reason = NULL "
        db.execute(seal + "WHERE id = %s", [made[1]])
        db.execute("SELECT * FROM dealix.emit('acme', 'deal.won', '{}')")
    daemon.wait_for("subscription.secret_unreadable")
    return made


def test_what_is_planted_is_found_as_text_and_as_the_hex_of_a_dump() -> None:
    planted = Planted("c2VhbA")
    for what, secret in (planted.secrets | planted.data).items():
        assert planted.found_in(f"a{secret}b") == planted.found_in(f"\\x00{secret.encode().hex()}") == [what]
    assert planted.found_in("nothing") == []
    assert planted.found_in(planted.payload, data=False) == []


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Installation]:
    """An installation in which errors may be logged: here they are asked for."""
    installed = Installation(tmp_path)
    yield installed
    installed.end()


@ANY_OWN_SERVER
@pytest.mark.threat("N96")
@pytest.mark.timeout(120)
def test_n95_no_secret_is_in_a_log_an_answer_a_process_a_dump_or_a_core(
    own_server: OwnServer, quiet: Installation, receiver: Receiver, tmp_path: Path
) -> None:
    assert quiet.sealing_key is not None
    planted = Planted(quiet.sealing_key)
    url = fresh_database(own_server.url)
    daemon = quiet.start(url, environ=LOUD)
    key = planted.keep("ops key", quiet.run("keys", "create", "--ops", database_url=url).out.strip())
    line = {
        "id": "whk_" + "c" * 24,
        "customer_id": "globex",
        "endpoint_url": "https://x.example/",
        "secret": planted.imported,
    }
    imported = quiet.run("subscriptions", "import", "-", stdin=json.dumps(line), database_url=url)
    assert imported.code == 0, imported.err

    made = deliver(daemon, receiver, planted, key, url)
    answers = go_wrong(daemon, planted, key, made[0], url)
    shown = "".join(
        ask(daemon, "GET", f"{BASE}{p}", key).text for p in ("/webhooks?customer_id=acme", f"/webhooks/{made[0]}")
    )
    log_of_attempts = ask(daemon, "GET", f"{BASE}/deliveries?customer_id=acme", key).text
    running = [Path(f"/proc/{daemon.pid}/{name}").read_bytes().replace(b"\0", b" ") for name in ("cmdline",)]
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("config.reloaded")
    own_server.kill()
    daemon.wait_for("ownership.lost")
    away = ask(daemon, "GET", f"{BASE}/webhooks", planted.wrong_key)
    own_server.start()
    until(lambda: httpx.get(f"{daemon.api}/readyz").status_code == 200, within_s=20, what="ready again")
    daemon.signal(signal.SIGABRT)  # a crash: with faulthandler or without, whatever it says
    assert daemon.wait() == -signal.SIGABRT

    assert away.status_code == 503
    for answer in (*answers, away):
        body, own = answer.json(), answer.request.url.path
        assert planted.found_in(answer.text, data=False) == [], own
        assert not {"traceback", "sql"} & body.keys()
    assert planted.found_in(shown, data=False) == []
    assert planted.found_in(log_of_attempts, data=False) == []
    assert planted.found_in(daemon.text()) == []
    assert daemon.text().count("request.answered") > 20  # it was loud
    assert planted.found_in(own_server.log(), data=False) == []
    assert [planted.found_in(one.decode()) for one in running] == [[]]
    assert not key_bytes_in(daemon.text() + own_server.log(), quiet.sealing_key)
    dump = dump_of(own_server, url)
    assert planted.payload in dump
    assert planted.found_in(dump, data=False) == []
    assert not key_bytes_in(dump, quiet.sealing_key)
    assert [path for path in (ROOT, tmp_path) for _ in path.glob("core*")] == []


def dump_of(server: OwnServer, url: str) -> str:
    home = server.data.parent
    pg_dump = binaries_for(account_for(home, server.data), home) / "pg_dump"
    ended = subprocess.run(
        [pg_dump, "--dbname", url, "--schema", "dealix"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.decode()


def test_n95_the_processes_of_an_embedded_database_inherit_no_secret_and_nobody_may_dump_core(
    installation: Installation, tmp_path: Path
) -> None:
    installation.sealing_key = None
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    credentials = tmp_path / "credentials"
    credentials.mkdir(mode=0o700)
    (credentials / "sealing_key").write_text(key)
    # A variable may hold it too, which root and the daemon's account can read of the daemon. Its children have none.
    for environ in ({"CREDENTIALS_DIRECTORY": str(credentials)}, {"DEALIX_SEALING_KEY": key}):
        daemon = installation.start(environ=environ)
        url = running_url(installation.data_dir)
        assert url is not None
        assert urlsplit(url).password is None
        children = until(lambda: members(installation.data_dir / "pg18"), within_s=5, what="Postgres")
        for pid in [daemon.pid, *(child.pid for child in children)]:
            process = Path(f"/proc/{pid}")
            assert key.encode() not in (process / "cmdline").read_bytes()
            limits = (process / "limits").read_text()
            assert any(line.split()[:5] == ["Max", "core", "file", "size", "0"] for line in limits.splitlines())
            if pid != daemon.pid:
                assert key.encode() not in (process / "environ").read_bytes()
                assert b"DEALIX_" not in (process / "environ").read_bytes()
                assert b"CREDENTIALS" not in (process / "environ").read_bytes()
        assert (key.encode() in Path(f"/proc/{daemon.pid}/environ").read_bytes()) == ("DEALIX_SEALING_KEY" in environ)
        assert daemon.stop() == 0
    assert resource.getrlimit(resource.RLIMIT_CORE)[1] != 0  # the daemon did that, not this machine
