"""A disk that is small enough to be filled."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.daemon_process import until


@contextmanager
def small_disk(size: str, *, mode: str = "755") -> Generator[Path]:
    """A file system of so many bytes ("150m"); skips the test where this process may not mount one."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    place = Path(tempfile.mkdtemp(prefix="dealix-disk-"))
    options = f"size={size},mode={mode}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "dealix-test", place], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        place.rmdir()
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        until(lambda: subprocess.run(["umount", place], check=False).returncode == 0, within_s=10, what="its unmount")
        place.rmdir()


class Ballast:
    """A file that takes all the room that is left on a disk."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "ballast"

    def fill(self) -> None:
        with self._path.open("ab", buffering=0) as file:
            for block in (1 << 20, 1 << 12):
                while True:
                    try:
                        file.write(bytes(block))
                    except OSError:
                        break

    def drop(self) -> None:
        self._path.unlink()
