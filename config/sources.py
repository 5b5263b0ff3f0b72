"""Where settings come from: a TOML file, the environment, systemd credentials. Readers collect faults, none raises."""

from __future__ import annotations

import os
import pwd
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Final, cast

from pydantic_core import ErrorDetails

PREFIX: Final = "DEALIX_"
CREDENTIALS: Final = {
    "database_url": "database.url",
    "database_direct_url": "database.direct_url",
    "sealing_key": "sealing_key",
}
"""Names in systemd's $CREDENTIALS_DIRECTORY, and the keys that they set."""
OF_CLIENTS: Final = {"DEALIX_API_KEY", "DEALIX_API_URL", "DEALIX_WEBHOOK_SECRET"}
"""Variables of those commands that ask the API; they are no settings."""
_EXPECTED: Final = {"path_type": "should be a path"}
"""Where pydantic's own words speak of Python."""


class ConfigError(Exception):
    """The configuration has faults; the text lists all of them, one a line, and shows no secret."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults: tuple[str, ...] = tuple(faults)
        super().__init__("\n".join(self.faults))


@dataclass(frozen=True)
class Given:
    """A value as it came, and where from: a file's name, a variable, a credential."""

    value: object
    origin: str


@dataclass(frozen=True)
class Reading:
    """What one source said, by dotted key, and what is wrong with it."""

    given: dict[str, Given] = field(default_factory=dict[str, Given])
    faults: list[str] = field(default_factory=list[str])


def read_file(path: Path, known: Iterable[str]) -> Reading:
    """The TOML file: sections are tables; the sealing key has no place in a file that others may read."""
    reading = Reading()
    known = [key for key in known if key != "sealing_key"]
    sections = {key.partition(".")[0] for key in known if "." in key}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        reading.faults.append(f"{path}: {e.strerror}")
        return reading
    except ValueError as e:  # TOML's and UTF-8's
        reading.faults.append(f"{path}: {e}")
        return reading
    for name, value in table.items():
        if name not in sections:
            entries = {name: value}
        elif isinstance(value, dict):
            entries = {f"{name}.{key}": inner for key, inner in cast("dict[str, object]", value).items()}
        else:
            reading.faults.append(f"{name} ({path}): should be a table, [{name}]")
            continue
        for key, entry in entries.items():
            if key == "sealing_key":
                reading.faults.append(
                    f"{key} ({path}): belongs into a credential or {PREFIX}SEALING_KEY, not into a file"
                )
            elif key in known:
                reading.given[key] = Given(entry, str(path))
            else:
                reading.faults.append(f"{key} ({path}): unknown key{_nearest(key, known)}")
    return reading


def read_environment(environ: Mapping[str, str], known: Iterable[str]) -> Reading:
    """Every variable that begins with DEALIX_; the rest of the name is the key, `__` for the dot."""
    reading = Reading()
    by_variable = {PREFIX + key.upper().replace(".", "__"): key for key in known}
    for variable, text in environ.items():
        if variable in by_variable:
            reading.given[by_variable[variable]] = Given(text, variable)
        elif variable.startswith(PREFIX) and variable not in OF_CLIENTS:
            reading.faults.append(f"{variable}: unknown variable{_nearest(variable, by_variable)}")
    return reading


def read_credentials(environ: Mapping[str, str]) -> Reading:
    """Files that systemd put into $CREDENTIALS_DIRECTORY; an empty one is as good as none.

    An empty sealing key is a fault: a daemon that made another one instead would seal with it from then on.
    """
    reading = Reading()
    directory = environ.get("CREDENTIALS_DIRECTORY")
    for name, key in CREDENTIALS.items() if directory else ():
        try:
            text = Path(directory or "", name).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            continue
        except OSError as e:
            reading.faults.append(f"{key} (credential {name}): {e.strerror}")
        except UnicodeDecodeError:
            reading.faults.append(f"{key} (credential {name}): should be UTF-8 text")
        else:
            if text or key == "sealing_key":
                reading.given[key] = Given(text, f"credential {name}")
    return reading


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """The first StateDirectory that systemd made, else the usual place for root or for a user."""
    if state := environ.get("STATE_DIRECTORY"):
        return Path(state.partition(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/dealix")
    data_home = environ.get("XDG_DATA_HOME", "")
    if data_home.startswith("/"):  # the XDG specification has relative ones ignored
        return Path(data_home, "dealix")
    return Path(environ.get("HOME") or _home(), ".local/share/dealix")


def tree(given: Mapping[str, Given]) -> dict[str, object]:
    """The nested form that the settings are validated from."""
    root: dict[str, object] = {}
    for dotted, entry in given.items():
        section, dot, key = dotted.partition(".")
        if dot:
            cast("dict[str, object]", root.setdefault(section, {}))[key] = entry.value
        else:
            root[section] = entry.value
    return root


def fault_of(error: ErrorDetails, given: Mapping[str, Given], known: Mapping[str, bool]) -> str:
    """One validation error as a line: key, value unless it may be secret, source, what is expected."""
    dotted = ".".join(str(part) for part in error["loc"])
    key = next((key for key in given if dotted == key or dotted.startswith(key + ".")), None)
    text = _EXPECTED.get(error["type"]) or error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if key is None:  # two settings that do not go together
        return f"{dotted}: {text}" if dotted else text
    item = "".join(f"[{part}]" for part in error["loc"] if isinstance(part, int))
    shown = f" = {error['input']!r:.80}" if known[key] else ""
    return f"{key}{item}{shown} ({given[key].origin}): {text}"


def _nearest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _home() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:  # a user id without an entry, as containers like it
        return "/"
