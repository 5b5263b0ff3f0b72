"""`python -m bench [NAME]`: the benchmarks by name, all of them without one."""

from __future__ import annotations

import click

from bench import drain


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Measure real processes on this machine: a durable Postgres, a daemon, a receiver.

    Each figure comes with the CPU that daemon, Postgres and receiver spent by the operating system's accounting.
    """
    if context.invoked_subcommand is None:
        context.invoke(drain_command)


@main.command("drain")
@click.option("--events", default=10_000, show_default=True)
@click.option("--subscriptions", default=1, show_default=True, help="Subscriptions of each customer.")
@click.option("--runs", default=5, show_default=True)
def drain_command(events: int, subscriptions: int, runs: int) -> None:
    """Events that wait in Postgres at the start, until the last delivery is recorded."""
    drain.run(events, subscriptions, runs)


main()
