"""The command line: `dealix`, or `python -m daemon`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, NoReturn, cast

import click
from typing_extensions import override

from config.sources import ConfigError
from daemon.cli.shared import config_option, settings_from
from daemon.errors import DealixError, SettingsInvalid

FAILURE: Final = 1
USAGE: Final = 2
CONFIGURATION: Final = 78
"""EX_CONFIG of sysexits.h; a service manager need not try again."""
INTERRUPTED: Final = 130


def _version() -> str:
    try:
        return version("dealix-webhooks")
    except PackageNotFoundError:  # run from a checkout
        return "unreleased"


_HELP: Final = """Outbound webhooks fed by Postgres: an event that commits with your rows becomes a signed, retried,
logged POST.

\b
Try it:    dealix demo
Run it:    dealix serve --config /etc/dealix.toml
Emit:      psql "$(dealix db-url)" -c "SELECT * FROM dealix.emit('acme', 'deal.won', '{}')"
"""


class Commands(click.Group):
    """`serve` and `demo`, and all others as soon as one that is neither is asked for: the daemon is spared them."""

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands:
            self._load()
        return super().get_command(ctx, cmd_name)

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        self._load()
        return super().list_commands(ctx)

    def _load(self) -> None:
        from daemon.cli.commands import COMMANDS  # noqa: PLC0415 see above

        for command in COMMANDS:
            self.add_command(command)


@click.group(
    cls=Commands,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 success, 1 failure, 2 wrong usage, 78 faulty configuration. See also dealix COMMAND --help.",
)
@click.version_option(_version(), prog_name="dealix")
def cli() -> None:
    """Outbound webhooks fed by Postgres."""


@cli.command()
@config_option
def serve(config_file: Path | None) -> int:
    """Run the daemon with its HTTP API until SIGTERM or Ctrl-C; SIGHUP reads the configuration again.

    \b
    Examples:
      dealix serve
      DEALIX_DATABASE__URL=postgresql://dealix@db1,db2/dealix dealix serve --config /etc/dealix.toml
    """  # noqa: D301 \b is click's
    from daemon import run  # noqa: PLC0415 the other commands need neither engine nor API, and start in half the time

    return run.serve(settings_from(config_file), config_file=config_file)


@cli.command()
@config_option
def demo(config_file: Path | None) -> int:
    """Start the daemon with a receiver beside it, send one event, and show every delivery as it arrives.

    The data is kept in ./.dealix unless DEALIX_DATA_DIR says otherwise; Ctrl-C ends it, the next start goes on.
    """
    from daemon import demo  # noqa: PLC0415 as above

    return demo.run(config_file)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its code; expected failures are told in a line or two on standard error."""
    try:
        result: object = cli.main(arguments, prog_name="dealix", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except click.UsageError as e:
        e.show()
        code = USAGE
    except click.ClickException as e:
        click.echo(f"dealix: {e.format_message()}", err=True)
        code = FAILURE
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone; keep the interpreter from saying so at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILURE
    except (ConfigError, DealixError, BaseExceptionGroup) as e:
        code = _tell(e)
    sys.exit(code)


def _tell(error: ConfigError | DealixError | BaseExceptionGroup[BaseException]) -> int:
    """Say what went wrong; the exit code for it. Raises again what nobody foresaw, with its traceback."""
    leaves = list(_leaves(error))
    expected = [leaf for leaf in leaves if isinstance(leaf, ConfigError | DealixError)]
    if len(expected) < len(leaves):
        raise error
    for leaf in expected:
        lead = "the configuration has faults:\n" if isinstance(leaf, ConfigError) else ""
        click.echo(f"dealix: {lead}{leaf}", err=True)
    return CONFIGURATION if any(isinstance(leaf, ConfigError | SettingsInvalid) for leaf in expected) else FAILURE


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(inner)
    else:
        yield error


if __name__ == "__main__":
    main()
