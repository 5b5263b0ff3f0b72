"""Running commands: in this process where nothing else is meant to run, which is a hundred times faster."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import pytest

from daemon.__main__ import main


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


Dealix: TypeAlias = Callable[..., Ended]


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> pytest.MonkeyPatch:
    """An environment without settings of whoever runs the tests; data_dir is a directory that is not there yet."""
    for name in list(os.environ):
        if name.startswith("DEALIX_") or name.upper().endswith("_PROXY") or name.endswith("_DIRECTORY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DEALIX_DATA_DIR", str(tmp_path_factory.mktemp("cli") / "data"))
    return monkeypatch


@pytest.fixture
def dealix(bare_environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Dealix:
    """Run a command in this process; keyword arguments are environment variables."""

    def run(*arguments: str, stdin: str = "", **environ: str) -> Ended:
        for name, value in environ.items():
            bare_environment.setenv(name, value)
        bare_environment.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode("utf-8", "surrogateescape"))))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def on_database(dealix: Dealix, bare_environment: pytest.MonkeyPatch, migrated_database: str) -> Dealix:
    """As `dealix`, on a migrated database of its own."""
    bare_environment.setenv("DEALIX_DATABASE__URL", migrated_database)
    return dealix
