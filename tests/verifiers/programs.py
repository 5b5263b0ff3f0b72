"""Each language's example beside a driver that runs it: what it takes to build and to start them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from api.verification import examples

DRIVERS: Final = Path(__file__).parent / "drivers"
BUILD_S: Final = 50.0
RUN_S: Final = 20.0


@dataclass(frozen=True)
class Language:
    """How a reader runs the example.

    `files`: where the example and the driver are put. `build`: programs run once. `start`: run for each request.
    `needs`: executables; `package`: Debian's name for what brings them, "" where they are there anyway.
    """

    name: str
    needs: tuple[str, ...]
    package: str
    example: str
    driver: str
    start: tuple[str, ...]
    build: tuple[tuple[str, ...], ...] = ()


EVERYWHERE: Final = (
    Language("Python", ("python3",), "python3", "verify.py", "drive.py", ("python3", "drive.py")),
    Language("Node.js", ("node",), "nodejs", "verify.mjs", "drive.mjs", ("node", "drive.mjs")),
    Language("Shell", ("openssl",), "openssl", "verify.sh", "drive.sh", ("sh", "drive.sh")),
)
"""What runs with all other tests."""
ELSEWHERE: Final = (
    Language("PHP", ("php",), "php-cli", "verify.php", "drive.php", ("php", "drive.php")),
    Language("Ruby", ("ruby",), "ruby", "verify.rb", "drive.rb", ("ruby", "drive.rb")),
    Language(
        "Go", ("go",), "golang-go", "dealix/verify.go", "drive.go", ("./drive",),
        (("go", "mod", "init", "receiver"), ("go", "vet", "./..."), ("go", "build", "-o", "drive", ".")),
    ),
    Language(
        "Java", ("javac", "java"), "default-jdk-headless", "DealixSignature.java", "Drive.java", ("java", "Drive"),
        (("javac", "-Xlint:all", "-Werror", "DealixSignature.java", "Drive.java"),),
    ),
    Language(
        "C#", ("mcs", "mono"), "mono-mcs", "DealixSignature.cs", "Drive.cs", ("mono", "drive.exe"),
        (("mcs", "-warnaserror", "-out:drive.exe", "DealixSignature.cs", "Drive.cs"),),
    ),
)  # fmt: skip
"""What `make test-languages` runs, as far as the toolchain is there."""


@dataclass(frozen=True)
class Verifier:
    """An example that is ready to be asked."""

    folder: Path
    start: tuple[str, ...]

    def verdict(self, body: bytes, signature: str | None, secret: str) -> str:
        """What it says of one request: `accepted <event id>` or `refused: <reason>`; anything else is a crash."""
        ran = subprocess.run(
            [*self.start, *([] if signature is None else [signature])],
            input=body, env={**surroundings(), "DEALIX_WEBHOOK_SECRET": secret},
            cwd=self.folder, capture_output=True, check=False, timeout=RUN_S,
        )  # fmt: skip
        said = (ran.stdout + ran.stderr).decode().strip()
        right = ran.returncode == (0 if said.startswith("accepted ") else 1)
        return said if right else f"exit {ran.returncode}: {said}"


def made(language: Language, folder: Path) -> Verifier:
    """Put the example, as it is published, beside its driver, and build what has to be built."""
    missing = [name for name in language.needs if shutil.which(name) is None]
    if missing:
        reason = f"{language.name} is not checked: no {' and no '.join(missing)} (apt install {language.package})"
        (pytest.fail if "CI" in os.environ and language in EVERYWHERE else pytest.skip)(reason)
    (folder / language.example).parent.mkdir(exist_ok=True)
    (folder / language.example).write_text(examples()[language.name])
    shutil.copy(DRIVERS / language.driver, folder)
    for command in language.build:
        ran = subprocess.run(
            command, env=surroundings(), cwd=folder, capture_output=True, check=False, timeout=BUILD_S, text=True
        )
        assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stdout}{ran.stderr}"
    return Verifier(folder, language.start)


def surroundings() -> Mapping[str, str]:
    """UTF-8, and a Go that neither fetches modules nor another toolchain."""
    return {**os.environ, "LC_ALL": "C.UTF-8", "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"}
