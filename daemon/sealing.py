"""Secrets as the database holds them: sealed with a key that the database has not.

A sealed secret is `version (1 byte) | key id (8) | nonce (12) | ciphertext and tag`, AES-256-GCM. Table, column and row
are authenticated with it, so that a ciphertext copied to another customer's row does not open there. The key id is the
beginning of the key's SHA-256: it tells a foreign key from damage, and lets several keys live side by side.

Random 96-bit nonces under one key stay safe for 2^32 seals (NIST SP 800-38D, section 8.3).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import stat
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from config.settings import Settings
from daemon.errors import SealBroken, SettingsInvalid

KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 8
FILE_NAME: Final = "sealing.key"

_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HEAD_BYTES: Final = len(_VERSION) + KEY_ID_BYTES + _NONCE_BYTES

_DISTINCT_BYTES: Final = 16
"""32 random bytes have about 30 different values; fewer than 16 come once in 10^16 keys, or from a keyboard."""


class KeyRing:
    """Seals with one key, opens with it and with any `others` that were used before."""

    def __init__(self, key: bytes, *others: bytes) -> None:
        """Each key has 32 bytes. Raises SettingsInvalid for one that was not made by chance."""
        for one in (key, *others):
            _refuse_weak(one)
        self._current = _key_id(key)
        self._ciphers = {_key_id(one): AESGCM(one) for one in (*others, key)}

    @property
    def key_ids(self) -> list[bytes]:
        """The ids (8 bytes) of the keys that this ring opens: what follows the first byte of a sealed secret."""
        return list(self._ciphers)

    def seal(self, secret: str, *, table: str, column: str, row: str) -> bytes:
        """Seal a secret for one place. The same secret sealed twice gives different bytes."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._ciphers[self._current].encrypt(nonce, secret.encode(), _place(table, column, row))
        return _VERSION + self._current + nonce + sealed

    def open(self, sealed: bytes, *, table: str, column: str, row: str) -> str:
        """The secret. Raises SealBroken where it was sealed with another key or for another place, or is damaged."""
        if len(sealed) < _HEAD_BYTES + _TAG_BYTES or sealed[:1] != _VERSION:
            raise SealBroken(f"{table}.{column} of {row}: not a sealed secret of this version")
        key_id = sealed[1 : 1 + KEY_ID_BYTES]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise SealBroken(f"{table}.{column} of {row}: sealed with another key (id {key_id.hex()})")
        nonce = sealed[1 + KEY_ID_BYTES : _HEAD_BYTES]
        try:
            return cipher.decrypt(nonce, sealed[_HEAD_BYTES:], _place(table, column, row)).decode()
        except InvalidTag:
            raise SealBroken(f"{table}.{column} of {row}: damaged, or sealed for another row") from None


def load_key_ring(settings: Settings) -> KeyRing:
    """The ring with the configured key, else with the one in `data_dir`, which the first start makes.

    Raises SettingsInvalid for a key that is malformed or weak, or a file that others may read.
    """
    if settings.sealing_key is not None:
        return KeyRing(_decode(settings.sealing_key.get_secret_value(), "sealing_key"))
    path = settings.data_dir / FILE_NAME
    try:
        try:
            text = _read(path)
        except FileNotFoundError:
            _make(path)
            text = _read(path)
    except OSError as e:
        raise SettingsInvalid(f"{path}: {e.strerror or e}") from e
    return KeyRing(_decode(text, str(path)))


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:KEY_ID_BYTES]


def _place(table: str, column: str, row: str) -> bytes:
    return b"\0".join(part.encode() for part in (table, column, row))  # Postgres has no NUL in names or text


def _decode(text: str, origin: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise SettingsInvalid(f"{origin}: should be the base64 text of 32 bytes: openssl rand -base64 32")
    return key


def _refuse_weak(key: bytes) -> None:
    steps = {(b - a) % 256 for a, b in pairwise(key)}
    typed = all(0x20 <= byte < 0x7F for byte in key)  # by chance once in 10^13 keys
    if len(key) != KEY_BYTES or len(set(key)) < _DISTINCT_BYTES or len(steps) == 1 or typed:
        raise SettingsInvalid("sealing_key: is not random; make one with: openssl rand -base64 32")


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
        return file.read(1024).decode("ascii", "replace")


def _make(path: Path) -> None:
    """Write a new key and give it its name in one step, so that no start ever finds a part of one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was quicker: its key it is
            os.link(fresh, path)
    finally:
        fresh.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
