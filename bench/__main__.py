"""`python -m bench [ROW]`: the rows of the table of figures, one by name or all that are short.

A row is a command in a module of this folder; its name stands in SHORT or LONG below, and nowhere else.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import click

from bench import (
    api_latency,
    backlog,
    delivery_log,
    drain,
    emit,
    emit_http,
    flood,
    hang,
    latency,
    memory,
    portal,
    recover,
    replicas,
    statements,
    subscriptions,
    sustained,
)
from bench.figures import OUT, report

SHORT: Final[tuple[click.Command, ...]] = (
    drain.drain,
    drain.drain_5,
    drain.drain_tls,
    emit.emit,
    emit.emit_alone,
    emit.emit_probe,
    emit_http.emit_http,
    statements.statements,
    latency.latency,
    hang.hang,
    api_latency.api_latency,
    flood.flood,
    recover.recover,
    replicas.replicas,
    subscriptions.subscriptions,
    sustained.sustained,
)
"""Minutes each: what `make bench` runs."""
LONG: Final[tuple[click.Command, ...]] = (backlog.backlog, delivery_log.log, portal.portal, memory.memory)
"""Those that fill tables with millions of rows, or run for long: by name only."""


@click.group(invoke_without_command=True)
@click.option("--out", type=click.Path(path_type=Path), default=OUT, show_default=True, help="Where the JSON files go.")
@click.pass_context
def main(context: click.Context, out: Path) -> None:
    """Measure real processes on this machine: a durable Postgres, a daemon, a receiver.

    Without a ROW all short ones. Each prints its runs and figures and leaves a JSON file; a row whose deliveries are
    not all there, once, fails and leaves none. `report` makes the README's table of what was left.
    """
    if context.invoked_subcommand is None:
        _run_all(out)


def _run_all(out: Path) -> None:
    """Each row in a process of its own, so that none inherits another's memory or leaves it anything."""
    command: list[str | Path] = [sys.executable, "-m", "bench", "--out", out]
    names = [str(row.name) for row in SHORT]
    failed = [name for name in names if _ended([*command, name])]
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


def _ended(command: list[str | Path]) -> int:
    """The exit code of a row. It is told to stop where we are: it has processes of its own to end."""
    with subprocess.Popen(command) as row:
        try:
            return row.wait()
        except BaseException:
            row.terminate()
            raise


def _stop(number: int, _: FrameType | None) -> NoReturn:
    """A signal unwinds all that was begun: processes end, temporary directories go."""
    raise SystemExit(128 + number)


@main.command("report")
def report_command() -> None:
    """Print the table of figures, in Markdown, of the JSON files that the rows left."""
    out: Path = click.get_current_context().find_root().params["out"]
    click.echo(report(out, [str(row.name) for row in (*SHORT, *LONG)]))


for row in (*SHORT, *LONG):
    main.add_command(row)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    main(prog_name="python -m bench")
