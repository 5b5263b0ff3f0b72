"""Run as a program of its own: keeps a server on the given data directory and inserts rows until it is killed."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from pathlib import Path

import psycopg

from daemon.embedded_postgres import EmbeddedPostgres, attached


def attach(data_dir: str) -> None:
    """As a command that is called while no daemon runs: twenty short sessions."""
    with attached(Path(data_dir)) as url:
        sessions = 0
        for _ in range(20):
            with psycopg.connect(url) as connection:
                (n,) = connection.execute("SELECT count(*) FROM generate_series(1, 50)").fetchone() or (0,)
                sessions += n
        sys.stdout.write(f"{sessions}\n")


def main(data_dir: str, task: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a daemon that drains; its server is not to hear of Ctrl-C at all
    if task == "attach":
        attach(data_dir)
        return
    server = EmbeddedPostgres.start(Path(data_dir), timeout_s=20)
    sys.stdout.write(json.dumps({"pid": server.pid, "url": server.url}) + "\n")
    sys.stdout.flush()
    if task == "stop":
        server.stop()
        return
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS kept; CREATE TABLE kept (n bigint)")
        for n in itertools.count(1):
            connection.execute("INSERT INTO kept VALUES (%s)", [n])
            sys.stdout.write(f"{n}\n")  # only what is committed is said
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
