"""The product as it was before its newest migrations, taken out of the history."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

import pytest

from daemon.store.migrate import known
from tests.support.daemon_process import ROOT

MIGRATIONS: Final = "daemon/store/migrations"
COMMAND: Final = (sys.executable, "-P", "-m", "daemon", "serve")
"""Without -P the directory in which it is started would come before PYTHONPATH."""


def check_out(directory: Path) -> str:
    """The newest version whose migrations are the first ones of today's; skips the test where there is none.

    It runs in the venv of today with the PYTHONPATH that is returned.
    """
    today = {m.name: _blob(m.sql) for m in known()}
    archive = directory / "former.tar"
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no checkout with a history")
    for commit in _candidates():
        former = _migrations(commit)
        if former and former.keys() < today.keys() and former.items() <= today.items():
            if max(former) > min(today.keys() - former.keys()):
                continue  # something was put in between
            _git("archive", f"--output={archive}", commit)
            with tarfile.open(archive) as tar:
                tar.extractall(directory / "former", filter="data")
            return f"{directory / 'former'}:{_gone(directory)}"
    pytest.skip("the history that is here has no version from before today's newest migrations")


def _gone(directory: Path) -> Path:
    """What it depends on and today's version does not, in a folder; skips the test where that cannot be had."""
    wanted = [line for line in (directory / "former" / "constraints.txt").read_text().split() if "==" in line]
    here = {distribution.name.lower().replace("_", "-") for distribution in distributions()}
    gone = [one for one in wanted if one.partition("==")[0].lower().replace("_", "-") not in here]
    place = directory / "gone"
    if gone:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), *gone]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip(f"the version before needs {', '.join(gone)}, and pip could not get that")
    return place


def _candidates() -> list[str]:
    """The last commit before each change of the migrations, the newest first."""
    changes = _git("log", "--format=%H", "--", MIGRATIONS).split()
    parents = [_git("rev-list", "--max-count=1", f"{change}^@").strip() for change in changes]
    return ["HEAD", *(commit for commit in parents if commit)]


def _migrations(commit: str) -> dict[str, str]:
    """The names of a version's migrations, and their contents' ids."""
    lines = [line.split() for line in _git("ls-tree", "-r", commit, "--", MIGRATIONS).splitlines()]
    return {Path(path).stem: blob for _, _, blob, path in lines if path.endswith(".sql")}


def _blob(content: bytes) -> str:
    """The id that git gives to a content."""
    return hashlib.sha1(b"blob %d\x00" % len(content) + content, usedforsecurity=False).hexdigest()


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
