"""Where sealing keys come from: the credential, else `sealing.key` in the data directory, which the first start makes.

A file has one key a line: the first one seals, the others open what was sealed before. A rotation first lays the new
key into `sealing.key.next`, with which every daemon opens and none seals yet; then it becomes the first line. Each step
is one rename, so that a start at any moment finds all keys that are in use.
"""

from __future__ import annotations

import base64
import os
import secrets
import stat
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from config.settings import Settings
from config.values import sealing_keys
from daemon.errors import SettingsInvalid
from daemon.sealing import KEY_BYTES, KeyRing, key_id_of

FILE_NAME: Final = "sealing.key"
NEXT_NAME: Final = "sealing.key.next"
_MAX_BYTES: Final = 4096

Stamp = tuple[tuple[int, int, int] | None, ...]


def new_key() -> bytes:
    """32 random bytes."""
    return secrets.token_bytes(KEY_BYTES)


def load_key_ring(settings: Settings) -> KeyRing:
    """The ring with the configured keys, else with those in `data_dir`, of which the first start makes one.

    Raises SettingsInvalid for a key that is malformed or weak, or a file that others may read.
    """
    if settings.sealing_key is not None:
        return KeyRing(*decode(settings.sealing_key.get_secret_value(), "sealing_key"))
    file = KeyFile(settings.data_dir)
    try:
        return file.ring()
    except FileNotFoundError:
        file.make()
        return file.ring()


def decode(text: str, origin: str) -> list[bytes]:
    """The keys in a text, one a line. Raises SettingsInvalid, which names `origin`."""
    try:
        return sealing_keys(text)
    except ValueError as e:
        raise SettingsInvalid(f"{origin}: {e}") from None


class KeyFile:
    """The keys in a data directory. Methods that read or write raise SettingsInvalid where that cannot be done."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / FILE_NAME
        self._next = data_dir / NEXT_NAME

    def ring(self) -> KeyRing:
        """All keys. Raises FileNotFoundError where there is no file."""
        return KeyRing(*self._keys(), *self._next_keys())

    def stamp(self) -> Stamp:
        """What differs once the files have changed."""
        return tuple(_stamp(path) for path in (self.path, self._next))

    def make(self) -> None:
        """The first key. Where another process was quicker its key it is."""
        with _translated(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = _write_beside(self.path, [new_key()])
            try:
                with suppress(FileExistsError):
                    os.link(fresh, self.path)
            finally:
                fresh.unlink()
            _sync(self.path.parent)

    def next_id(self) -> bytes | None:
        """The id of a key that waits for its rotation to go on."""
        sealing = [key_id_of(key) for key in self._keys()]
        return next((key_id for key in self._next_keys() if (key_id := key_id_of(key)) not in sealing), None)

    def begin(self, key: bytes) -> None:
        """Let every daemon open with a new key before anybody seals with it."""
        _ = KeyRing(key)  # refuses a weak one
        self._replace(self._next, [key])

    def promote(self) -> None:
        """Make the key that waits the one that seals. Where none waits nothing happens."""
        if self.next_id() is not None:
            self._replace(self.path, [*self._next_keys(), *self._keys()])
        with _translated(self._next):
            self._next.unlink(missing_ok=True)

    def drop(self, key_id: bytes) -> None:
        """Take a key out that does not seal."""
        self._replace(self.path, [key for key in self._keys() if key_id_of(key) != key_id])

    def _keys(self) -> list[bytes]:
        with _translated(self.path):
            return decode(_read(self.path), str(self.path))

    def _next_keys(self) -> list[bytes]:
        try:
            with _translated(self._next):
                return decode(_read(self._next), str(self._next))
        except FileNotFoundError:
            return []

    def _replace(self, path: Path, keys: Sequence[bytes]) -> None:
        with _translated(path):
            fresh = _write_beside(path, keys)
            fresh.replace(path)
            _sync(path.parent)


@contextmanager
def _translated(path: Path) -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as e:
        raise SettingsInvalid(f"{path}: {e.strerror or e}") from e


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise SettingsInvalid(f"{path}: is not a plain file")
        if status.st_mode & 0o077:
            raise SettingsInvalid(f"{path}: others may read or change it; run: chmod 600 {path}")
        if status.st_uid not in {os.geteuid(), 0}:
            raise SettingsInvalid(f"{path}: belongs to another user (uid {status.st_uid})")
        return file.read(_MAX_BYTES).decode("ascii", "replace")


def _write_beside(path: Path, keys: Sequence[bytes]) -> Path:
    """A private file with these keys, whole and on the disk, which still has to get its name."""
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(base64.b64encode(key) + b"\n" for key in keys)
        file.flush()
        os.fsync(file.fileno())
    return fresh


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
