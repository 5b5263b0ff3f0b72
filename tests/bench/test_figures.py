"""Figures: medians, verdicts, the table; and that what did not happen makes none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from bench import emits
from bench.arrivals import Arrival, check_once
from bench.cpu import Meter
from bench.figures import Figure, Untrue, medians, number, publish, report
from bench.parts import stage


class Sample(msgspec.Struct, frozen=True):
    per_second: float
    us: float


def published(out: Path, *figures: Figure, others: float | None = None) -> str:
    """What a row named `trial` prints when it publishes two samples and these figures."""

    @click.group()
    @click.option("--out")
    def main(out: str) -> None:
        pass

    @main.command()
    @click.option("--events", default=5)
    @click.option("--runs", default=2)
    def trial(events: int, runs: int) -> None:
        publish("a trial", [Sample(10.0, 1.5), Sample(30.0, 2.5)], figures, others=others)

    done = CliRunner().invoke(main, ["--out", str(out), "trial", "--events", "7"], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_the_median_of_each_column_stands_for_itself() -> None:
    assert medians([Sample(1, 9), Sample(3, 8), Sample(2, 70)]) == Sample(2, 9)
    assert medians([Sample(1, 9), Sample(2, 8)]) == Sample(1.5, 8.5)


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure("f", 4000, "/s", 4000, 6000), "met"),
        (Figure("f", 3999, "/s", 4000, 6000), "missed"),
        (Figure("f", 6000, "/s", 4000, 6000), "stretch"),
        (Figure("f", 250, "µs", 250, 160, at_most=True), "met"),
        (Figure("f", 251, "µs", 250, 160, at_most=True), "missed"),
        (Figure("f", 160, "µs", 250, 160, at_most=True), "stretch"),
        (Figure("f", 1, "µs", 250, at_most=True), "met"),
        (Figure("f", 1, "µs"), ""),
    ],
)
def test_a_figure_is_judged_by_the_better_of_its_bounds(figure: Figure, verdict: str) -> None:
    assert figure.verdict == verdict


@pytest.mark.parametrize(
    ("value", "text"), [(0.04567, "0.0457"), (3.14159, "3.14"), (99.96, "100"), (12345.6, "12,346")]
)
def test_a_number_is_shown_with_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_a_row_leaves_its_runs_and_how_it_was_called_and_the_table_is_made_of_that(tmp_path: Path) -> None:
    out = published(tmp_path, Figure("deliveries", 20, "/s", 15, floor=40, ratio=0.5), others=0.25)
    assert "deliveries: 20 /s  target ≥ 15: met  floor 40  ratio 0.50" in out
    assert "others took up to 25%" in out
    left = json.loads((tmp_path / "trial.json").read_text())
    assert left["command"] == "python -m bench trial --events 7"
    assert left["runs"] == [{"per_second": 10.0, "us": 1.5}, {"per_second": 30.0, "us": 2.5}]
    assert left["medians"] == {"per_second": 20.0, "us": 2.0}
    lines = report(tmp_path, ["other", "trial"]).splitlines()
    assert lines[2] == (
        "| deliveries | **20 /s** | ≥ 15 |  | met | 40 /s, ratio 0.50 | `python -m bench trial --events 7` |"
    )
    assert left["date"][:10] in lines[-2]
    assert left["machine"]["kernel"] in lines[-2]
    assert "at least 2 runs" in lines[-2]
    assert "quiet" in lines[-1]
    assert "trial (25%)" in lines[-1]


def test_without_figures_there_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="run a row first"):
        report(tmp_path, ["trial"])


@pytest.mark.parametrize(
    ("arrived", "message"),
    [
        ([("a", "/x")], "1 did not arrive, 0 arrived twice, 0 were not expected"),
        ([("a", "/x"), ("b", "/x"), ("b", "/x")], "0 did not arrive, 1 arrived twice, 0 were not expected"),
        ([("a", "/x"), ("b", "/x"), ("b", "/y")], "0 did not arrive, 0 arrived twice, 1 were not expected"),
    ],
)
def test_what_did_not_arrive_once_where_it_had_to_makes_no_figure(arrived: list[tuple[str, str]], message: str) -> None:
    wanted = [("a", "/x"), ("b", "/x")]
    check_once([Arrival(1, *duty) for duty in wanted], wanted)
    with pytest.raises(Untrue, match=message):
        check_once([Arrival(1, *duty) for duty in arrived], wanted)


@pytest.mark.timeout(120)
def test_emits_that_wrote_nothing_or_failed_make_no_figure() -> None:
    with stage(1) as on:
        emits.prepare(on)
        assert emits.written(on, 64, emits.INSERT).transactions == 64
        with pytest.raises(Untrue, match="64 emits made 0 events"):
            emits.written(on, 64, "SELECT :data::text;")
        with pytest.raises(Untrue, match="pgbench ended with"):
            emits.written(on, 64, "SELECT 1 / (SELECT 0) FROM (SELECT :data::text) AS t;")


def test_a_process_is_charged_with_what_it_and_its_ended_children_computed() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    code = f"import subprocess, sys\n{burn}subprocess.run([sys.executable, '-c', {burn!r}])\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        meter = Meter(child=child.pid)
        assert child.stdout is not None
        assert child.stdout.readline()
        costs = meter.costs()
        child.kill()
    assert 0.55 < costs.cpu_s["child"] < 1.5
    assert costs.wall_s * (os.cpu_count() or 1) >= costs.cpu_s["child"]
    assert 0 <= costs.others <= 1
