"""The rules of the house that no linter knows."""

from __future__ import annotations

import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
OURS: Final = "dealix-webhooks"


def test_no_other_installed_distribution_ships_our_import_names() -> None:
    owners = packages_distributions()
    assert {name: set(owners.get(name, [])) - {OURS} for name in ("api", "config", "daemon")} == {
        "api": set(),
        "config": set(),
        "daemon": set(),
    }


def test_every_module_of_the_daemon_stands_on_a_floor() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    floors = next(c for c in project["tool"]["importlinter"]["contracts"] if c["id"] == "floors")
    named = {name.strip(" ()") for layer in floors["layers"] for name in layer.split(":")}
    modules = {f"daemon.{p.stem}" for p in (ROOT / "daemon").glob("*.py") if p.name != "__init__.py"}
    packages = {f"daemon.{p.name}" for p in (ROOT / "daemon").iterdir() if any(p.glob("*.py"))}
    assert modules | packages <= named
