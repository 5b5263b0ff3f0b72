"""Each row works by one command, at a tiny size, and leaves figures that hang together."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import pytest

from bench.figures import Published
from bench.receiver import tls_is_possible

ROOT: Final = Path(__file__).parents[2]
LIMIT_S: Final = 170.0
DRAINED: Final = {"per_second", "cpu_us", "daemon_us", "postgres_us", "ratio"}


def measured(row: str, options: dict[str, int], out: Path) -> Published:
    """What the row published."""
    words = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "bench", "--out", out, row, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    published = msgspec.json.decode((out / f"{row}.json").read_bytes(), type=Published)
    assert published.command == f"python -m bench {row} " + " ".join(word.replace("=", " ") for word in words)
    for figure in published.figures:
        assert f"{figure.name}: " in done.stdout
    return published


@pytest.mark.rows
@pytest.mark.timeout(LIMIT_S + 5)
@pytest.mark.parametrize(
    ("row", "options", "figures"),
    [
        ("drain", {"events": 300, "runs": 2}, DRAINED),
        ("drain-5", {"events": 100, "runs": 1}, DRAINED),
        ("drain-tls", {"events": 300, "runs": 1}, DRAINED),
        ("emit", {"events": 256, "runs": 2}, {"emit_per_s", "ratio"}),
        ("emit-alone", {"events": 256, "runs": 2}, {"emit_per_s"}),
        ("emit-probe", {"events": 512, "runs": 1}, {"emit_us", "commit_us"}),
        (
            "emit-http",
            {"events": 200, "runs": 1},
            {"single_per_s", "batch_per_s", "quiet_single_per_s", "quiet_batch_per_s"},
        ),
        (
            "statements",
            {"events": 300, "singles": 20, "runs": 1},
            {"statements", "wal_bytes", "single_statements", "single_wal_bytes"},
        ),
    ],
)
def test_a_row_runs_checks_itself_and_publishes_medians(
    row: str, options: dict[str, int], figures: set[str], tmp_path: Path
) -> None:
    if shutil.which("cc") is None:
        (pytest.fail if "CI" in os.environ else pytest.skip)("no C compiler")
    if row.endswith("-tls") and not tls_is_possible():
        pytest.skip("libssl-dev is not installed, which only this row needs")
    published = measured(row, options, tmp_path)
    assert len(published.runs) == options["runs"]
    for run in published.runs:
        assert all(math.isfinite(value) and value >= 0 for value in run.values())
    for name, value in published.medians.items():
        assert min(run[name] for run in published.runs) <= value <= max(run[name] for run in published.runs)
    assert {published.medians[name] for name in figures} == {figure.value for figure in published.figures}
    assert all(figure.value > 0 for figure in published.figures)
    assert all(figure.floor is None or figure.floor > 0 for figure in published.figures)


@pytest.mark.rows
@pytest.mark.timeout(LIMIT_S)
def test_a_row_that_is_told_to_stop_ends_its_processes_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--out", tmp_path / "out", "drain", "--events=100000"]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}) as row:
        while not (found := list(tmp_path.glob("dealix-bench-*/daemon.log"))):
            assert row.poll() is None
            time.sleep(0.05)
        row.terminate()
        assert row.wait(LIMIT_S / 2) == 128 + signal.SIGTERM
    home = str(found[0].parent)
    assert not list(tmp_path.iterdir())
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # ended meanwhile, or another account's
            assert home.encode() not in environ.read_bytes()
