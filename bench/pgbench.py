"""pgbench, of the same wheel as the embedded server: many SQL clients that cost little themselves."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.cpu import Meter
from bench.figures import Untrue
from bench.parts import Stage
from daemon.embedded_postgres.installation import BINARIES, PACKAGE

THREADS: Final = 2
LIMIT_S: Final = 300.0
_RATE: Final = re.compile(r"^tps = ([0-9.]+) ", re.MULTILINE)
_DONE: Final = re.compile(r"^number of transactions actually processed: (\d+)/(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Load:
    """So many clients that run a script again and again, so many times in all; each time is a transaction."""

    script: str
    clients: int
    transactions: int


@dataclass(frozen=True)
class Done:
    """Transactions, how many a second, and the CPU in µs that Postgres and pgbench itself took for each."""

    transactions: int
    per_second: float
    postgres_us: float
    client_us: float


def run(on: Stage, load: Load, **variables: str) -> Done:
    """Run it to the end; `variables` are the script's, sent as parameters of prepared statements.

    Raises Untrue where a transaction failed.
    """
    script = on.home / "pgbench.sql"
    script.write_text(load.script, encoding="ascii")
    each = -(-load.transactions // load.clients)
    command = [_program(), "--no-vacuum", "--protocol=prepared", f"--file={script}", f"--client={load.clients}"]
    command += [f"--jobs={min(THREADS, load.clients)}", f"--transactions={each}"]
    command += [f"--define={name}={value}" for name, value in variables.items()]
    before, meter = os.times(), Meter(postgres=on.postgres.pid)
    done = subprocess.run([*command, on.url], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    after, costs = os.times(), meter.costs()
    rate, count = _RATE.search(done.stdout), _DONE.search(done.stdout)
    if done.returncode or rate is None or count is None or count[1] != count[2]:
        raise Untrue(f"pgbench ended with {done.returncode}: {done.stdout}{done.stderr[-2000:]}")
    client_s = after.children_user + after.children_system - before.children_user - before.children_system
    n = int(count[1])
    return Done(n, float(rate[1]), costs.cpu_s["postgres"] / n * 1e6, client_s / n * 1e6)


def _program() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(PACKAGE)
    return Path(spec.submodule_search_locations[0]).parent / BINARIES / "pgbench"
