"""What a row of the table of figures is: its runs, their medians against floor and target, on paper and as JSON."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final, TypeVar

import click
import msgspec
from click.core import ParameterSource

ROOT: Final = Path(__file__).parents[1]
OUT: Final = ROOT / "bench/out"
MEASURED: Final = ("api", "bench", "config", "daemon")
"""The folders whose state a figure stands for."""
QUIET: Final = 0.05
"""The share of the machine that others may take in a run before it is said."""
CLOSE: Final = 100
"""From here on a number is shown without decimals."""

Run = TypeVar("Run", bound=msgspec.Struct)
"""One run: a frozen struct of floats, a column each; the field's name is the column's."""


class Untrue(Exception):
    """The deliveries are not all there, once: what was measured is no figure."""


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the table.

    `value` is the median over the runs, in `unit`. `target` and `stretch` bound it from below, or from above where
    `at_most`. `floor` is the median of the least that it could be, measured in the same runs, and `ratio` the median of
    what each run was against its own floor.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    stretch: float | None = None
    at_most: bool = False
    floor: float | None = None
    ratio: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the target is met; empty where there is none."""
        if self.target is None:
            return ""
        for bound, word in ((self.stretch, "stretch"), (self.target, "met")):
            if bound is not None and (self.value <= bound if self.at_most else self.value >= bound):
                return word
        return "missed"


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured."""

    cpus: int
    cpu: str
    memory_mb: int
    kernel: str
    python: str

    @classmethod
    def this(cls) -> Machine:
        """As /proc tells."""
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        models = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
        memory_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
        cpu = models[0] if models else platform.machine()
        return cls(len(os.sched_getaffinity(0)), cpu, memory_mb, platform.release(), platform.python_version())


class Published(msgspec.Struct, frozen=True):
    """The JSON file of a row. `others` is the largest share of the machine that anything else took in a run, 0–1."""

    row: str
    title: str
    command: str
    date: str
    commit: str
    machine: Machine
    others: float | None
    runs: list[dict[str, float]]
    medians: dict[str, float]
    figures: list[Figure]


def medians(runs: Sequence[Run]) -> Run:
    """The median of each column."""
    rows = [columns(run) for run in runs]
    return msgspec.convert({name: median(row[name] for row in rows) for name in rows[0]}, type(runs[0]))


def columns(run: msgspec.Struct) -> dict[str, float]:
    """A run as name and number."""
    return msgspec.convert(msgspec.to_builtins(run), dict[str, float])


def publish(title: str, runs: Sequence[msgspec.Struct], figures: Sequence[Figure], *, others: float | None) -> None:
    """Print a row and write its JSON file. To be called within the row's command, whose name and options it shows.

    `others`: see Published; where it is over 5 % the row says so.
    """
    context = click.get_current_context()
    row, out = str(context.command.name), Path(context.find_root().params.get("out", OUT))
    published = Published(
        row=row,
        title=title,
        command=_command(context),
        date=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        commit=_commit(),
        machine=Machine.this(),
        others=others,
        runs=[columns(run) for run in runs],
        medians=columns(medians(runs)),
        figures=list(figures),
    )
    click.echo(_shown(published))
    out.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(published), indent=2)
    (out / f"{row}.json").write_bytes(text + b"\n")


def report(out: Path, rows: Sequence[str]) -> str:
    """The table of all rows that have a file in `out`, in Markdown, with where, when and how they were measured."""
    found = [_read(file) for row in rows if (file := out / f"{row}.json").exists()]
    if not found:
        raise click.ClickException(f"{out} has no figures: run a row first")
    lines = [
        "| figure | measured | target | stretch | | floor in the same run | command |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_report_line(published, figure) for published in found for figure in published.figures]
    machine = found[-1].machine
    dates = sorted(published.date[:10] for published in found)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    commits = ", ".join(dict.fromkeys(published.commit for published in found))
    where = f"{machine.cpus} × {machine.cpu}, {machine.memory_mb} MB, Linux {machine.kernel}, Python {machine.python}"
    fewest = min(len(published.runs) for published in found)
    lines += ["", f"{when}, commit {commits}; {where}; medians of at least {fewest} runs after a warm-up."]
    if busy := [f"{published.row} ({published.others:.0%})" for published in found if (published.others or 0) > QUIET]:
        lines.append(f"Not on a quiet machine, with the share that others took of it: {', '.join(busy)}.")
    return "\n".join(lines)


# -- inside -----------------------------------------------------------------------------------------------------------


def _shown(published: Published) -> str:
    widths = {name: max(len(name), 9) for name in published.medians}
    rows = [*published.runs, published.medians]
    lines = [f"{published.row}: {published.title}", "  " + "".join(f"  {n:>{w}}" for n, w in widths.items())]
    for index, row in enumerate(rows):
        cells = "".join(f"  {number(row[name]):>{width}}" for name, width in widths.items())
        lines.append(f"  {cells}{'   median' if index == len(published.runs) else ''}")
    for figure in published.figures:
        bounds = f"  target {_bound(figure, figure.target)}: {figure.verdict}" if figure.target is not None else ""
        floor = f"  floor {number(figure.floor)}" if figure.floor is not None else ""
        ratio = f"  ratio {figure.ratio:.2f}" if figure.ratio is not None else ""
        lines.append(f"  {figure.name}: {number(figure.value)} {figure.unit}{bounds}{floor}{ratio}")
    if (published.others or 0) > QUIET:
        lines.append(f"  not a quiet machine: others took up to {published.others:.0%} of it in a run")
    return "\n".join(lines)


def _report_line(published: Published, figure: Figure) -> str:
    floor = "" if figure.floor is None else f"{number(figure.floor)} {figure.unit}"
    if figure.ratio is not None:
        floor = f"{floor}, ratio {figure.ratio:.2f}".removeprefix(", ")
    cells = [
        figure.name,
        f"**{number(figure.value)} {figure.unit}**".replace(" **", "**"),
        _bound(figure, figure.target),
        _bound(figure, figure.stretch),
        figure.verdict,
        floor,
        f"`{published.command}`",
    ]
    return f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    """Three digits that count, thousands apart."""
    if abs(value) >= CLOSE:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _bound(figure: Figure, bound: float | None) -> str:
    return "" if bound is None else f"{'≤' if figure.at_most else '≥'} {number(bound)}"


def _command(context: click.Context) -> str:
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) not in {None, ParameterSource.DEFAULT}
    }
    options = [f" --{name.replace('_', '-')} {value}" for name, value in given.items()]
    return f"python -m bench {context.command.name}{''.join(options)}"


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            " with changes" if git("status", "--porcelain", *MEASURED) else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _read(file: Path) -> Published:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Published)
    except msgspec.DecodeError as e:
        print(f"{file}: {e}", file=sys.stderr)
        raise click.ClickException(f"{file} is none of ours, or of another version: remove it") from e
