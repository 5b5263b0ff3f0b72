"""Secrets as the database holds them: sealed with a key that the database has not.

A sealed secret is `version (1 byte) | key id (8) | nonce (12) | ciphertext and tag`, AES-256-GCM. Table, column and row
are authenticated with it, so that a ciphertext copied to another customer's row does not open there. The key id is the
beginning of the key's SHA-256: it tells a foreign key from damage, and lets several keys live side by side.

Random 96-bit nonces under one key stay safe for 2^32 seals (NIST SP 800-38D, section 8.3).
"""

from __future__ import annotations

import hashlib
import secrets
from itertools import pairwise
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from daemon.errors import SealBroken, SealingKeyMissing, SettingsInvalid

KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 8

_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HEAD_BYTES: Final = len(_VERSION) + KEY_ID_BYTES + _NONCE_BYTES

_MISSING: Final = 16
"""Ids of missing keys that are remembered: damaged rows may name any number of them."""

_DISTINCT_BYTES: Final = 16
"""32 random bytes have about 30 different values; fewer than 16 come once in 10^16 keys, or from a keyboard."""


class KeyRing:
    """Seals with one key, opens with it and with any `others` that were used before.

    A rotation changes what is in it (`adopt`), and so reaches everybody who holds it.
    """

    def __init__(self, key: bytes, *others: bytes) -> None:
        """Each key has 32 bytes. Raises SettingsInvalid for one that was not made by chance."""
        for one in (key, *others):
            _refuse_weak(one)
        self._ciphers = {key_id_of(one): AESGCM(one) for one in (key, *others)}
        self._missing: set[bytes] = set()

    @property
    def key_ids(self) -> list[bytes]:
        """The ids (8 bytes) of the keys that this ring opens, the one that seals first."""
        return list(self._ciphers)

    @property
    def sealing_id(self) -> bytes:
        """The id of the key that seals."""
        return next(iter(self._ciphers))

    @property
    def missing_ids(self) -> list[bytes]:
        """The ids of keys that something was sealed with which this ring was asked to open and could not."""
        return sorted(self._missing)

    def adopt(self, fresh: KeyRing) -> None:
        """Hold the keys of `fresh` from now on, and those alone."""
        self._ciphers = fresh._ciphers
        self._missing -= self._ciphers.keys()

    def seal(self, secret: str, *, table: str, column: str, row: str) -> bytes:
        """Seal a secret for one place. The same secret sealed twice gives different bytes."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._ciphers[self.sealing_id].encrypt(nonce, secret.encode(), _place(table, column, row))
        return _VERSION + self.sealing_id + nonce + sealed

    def open(self, sealed: bytes, *, table: str, column: str, row: str) -> str:
        """The secret. Raises SealBroken where it was sealed for another place or is damaged.

        With a key that this ring has not: SealingKeyMissing, a SealBroken that the operator can mend.
        """
        if len(sealed) < _HEAD_BYTES + _TAG_BYTES or sealed[:1] != _VERSION:
            raise SealBroken(f"{table}.{column} of {row}: not a sealed secret of this version")
        key_id = sealed[1 : 1 + KEY_ID_BYTES]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            if len(self._missing) < _MISSING:
                self._missing.add(key_id)
            raise SealingKeyMissing(f"{table}.{column} of {row}: sealed with another key (id {key_id.hex()})")
        nonce = sealed[1 + KEY_ID_BYTES : _HEAD_BYTES]
        try:
            return cipher.decrypt(nonce, sealed[_HEAD_BYTES:], _place(table, column, row)).decode()
        except InvalidTag:
            raise SealBroken(f"{table}.{column} of {row}: damaged, or sealed for another row") from None


def key_id_of(key: bytes) -> bytes:
    """The beginning (8 bytes) of the key's SHA-256."""
    return hashlib.sha256(key).digest()[:KEY_ID_BYTES]


def _place(table: str, column: str, row: str) -> bytes:
    return b"\0".join(part.encode() for part in (table, column, row))  # Postgres has no NUL in names or text


def _refuse_weak(key: bytes) -> None:
    steps = {(b - a) % 256 for a, b in pairwise(key)}
    typed = all(0x20 <= byte < 0x7F for byte in key)  # by chance once in 10^13 keys
    if len(key) != KEY_BYTES or len(set(key)) < _DISTINCT_BYTES or len(steps) == 1 or typed:
        raise SettingsInvalid("sealing_key: is not random; make one with: openssl rand -base64 32")
