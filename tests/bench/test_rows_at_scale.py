"""Each row about scale works by one command, at a tiny size, and leaves figures that follow from its runs."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
import pytest

from bench.arrivals import Arrival, check_once
from bench.emitting import percentile
from bench.figures import Published, Untrue
from bench.replicas import larger_share
from bench.watch import Sample, growth_mb, slope
from daemon.store.shards import shard_of

ROOT: Final = Path(__file__).parents[2]
LIMIT_S: Final = 170.0
TOO_FAST: Final = "the machine does not bear this load"


@pytest.mark.rows
@pytest.mark.timeout(LIMIT_S + 5)
@pytest.mark.parametrize(
    ("row", "options", "runs", "figures"),
    [
        ("latency", {"seconds": "0.5", "runs": "1"}, 1, 7),
        ("hang", {"events": "800", "seconds": "2", "per-second": "80", "runs": "1"}, 1, 4),
        ("api-latency", {"events": "10000", "requests": "12", "runs": "1"}, 1, 2),
        ("flood", {"events": "6000", "singles": "2", "every": "0.1"}, 2, 4),
        ("replicas", {"events": "1000", "seconds": "8", "per-second": "100", "runs": "1"}, 1, 5),
        ("subscriptions", {"registered": "1000", "events": "1000", "runs": "1"}, 1, 3),
        ("sustained", {"per-second": "100", "each": "3", "minutes": "0.2"}, 10, 4),
        ("backlog", {"deliveries": "5000", "window": "1000", "runs": "1"}, 1, 4),
        ("log", {"attempts": "9000", "runs": "2"}, 2, 5),
        ("portal", {"attempts": "9300", "requests": "1", "runs": "2"}, 2, 4),
        ("memory", {"minutes": "0.2", "events": "1000"}, 1, 3),
    ],
)
def test_a_row_at_a_tiny_size_checks_itself_and_publishes(
    row: str, options: dict[str, str], runs: int, figures: int, tmp_path: Path
) -> None:
    if shutil.which("cc") is None:
        (pytest.fail if "CI" in os.environ else pytest.skip)("no C compiler")
    words = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "bench", "--out", tmp_path, row, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if TOO_FAST in done.stderr:
        pytest.skip("this machine is too busy now for a load with fixed times")
    assert done.returncode == 0, done.stdout + done.stderr
    published = msgspec.json.decode((tmp_path / f"{row}.json").read_bytes(), type=Published)
    assert (len(published.runs), len(published.figures)) == (runs, figures)
    assert all(math.isfinite(value) for run in published.runs for value in run.values())
    assert all(f"{figure.name}: " in done.stdout for figure in published.figures)
    for name, value in published.medians.items():
        assert min(run[name] for run in published.runs) <= value <= max(run[name] for run in published.runs)


def test_what_did_not_arrive_exactly_once_is_no_figure() -> None:
    one, two = Arrival(1, "evt_1", "/c"), Arrival(2, "evt_2", "/c")
    check_once([one, two], [one.duty, two.duty])
    with pytest.raises(Untrue, match=r"of 2 deliveries 1 did not arrive, 0 arrived twice, 0 were not expected"):
        check_once([one], [one.duty, two.duty])
    with pytest.raises(Untrue, match=r"0 did not arrive, 1 arrived twice, 0 were not expected"):
        check_once([one, two, one], [one.duty, two.duty])
    with pytest.raises(Untrue, match=r"1 did not arrive, 0 arrived twice, 1 were not expected"):
        check_once([one, Arrival(3, "evt_2", "/d")], [one.duty, two.duty])


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert percentile([7.0], 0.99) == 7


def test_growth_and_slope_of_memory_are_those_of_a_straight_line() -> None:
    samples = [Sample(float(s), 80 + s / 100, 0) for s in range(1000)]
    assert growth_mb(samples, 0, 1000) == pytest.approx(9)
    assert slope([(s.at_s, s.rss_mb) for s in samples]) == pytest.approx(0.01)
    flat = [Sample(float(s), 80.0, 0) for s in range(1000)]
    assert growth_mb(flat, 0, 1000) == slope([(s.at_s, s.rss_mb) for s in flat]) == 0


def test_the_larger_share_is_counted_by_the_owners_of_the_customers_shards() -> None:
    low = [name for name in map(str, range(200)) if shard_of(name) < 32][:3]
    high = [name for name in map(str, range(200)) if shard_of(name) >= 32][:1]
    arrived = [Arrival(n, f"evt_{n}", f"/{name}") for n, name in enumerate([*low, *high])]
    assert larger_share(arrived, {7: frozenset(range(32)), 8: frozenset(range(32, 64))}) == 0.75
