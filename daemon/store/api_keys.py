"""API keys: made, listed, revoked, and recognised by their SHA-256 digest, which is all that is stored."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from daemon.ids import CustomerId
from daemon.store.connection import Connection

_PREFIX: Final = "dlx_"
_RANDOM_BYTES: Final = 32  # 43 url-safe characters. Not guessable, so that a plain digest needs no salt


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without the key itself. `customer_id` is None for an ops key, which acts for every customer."""

    id: str
    customer_id: CustomerId | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None


def digest_of(key: str) -> bytes:
    """SHA-256 (32 bytes) of a key, or of anything that somebody presents as one."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


_CREATE: Final = """
INSERT INTO dealix.api_keys (id, digest, customer_id, expires_at)
VALUES (%(id)s, %(digest)s, %(customer_id)s, clock_timestamp() + %(valid_s)s * interval '1 second')
RETURNING id, customer_id, created_at, last_used_at, expires_at, revoked_at
"""

_ALL: Final = """
SELECT id, customer_id, created_at, last_used_at, expires_at, revoked_at
FROM dealix.api_keys
ORDER BY created_at, id
"""

# Locks the key's row.
_REVOKE: Final = """
UPDATE dealix.api_keys
SET revoked_at = coalesce(revoked_at, clock_timestamp())
WHERE id = %(id)s
"""

# Every API request. Index: the unique one on digest. Once a minute at most it writes, and locks, the key's row; of
# requests that do so at once the later ones look again at the row that the first has written, and leave it.
_AUTHENTICATE: Final = """
WITH valid AS (
    SELECT id, customer_id, created_at, last_used_at, expires_at, revoked_at
    FROM dealix.api_keys
    WHERE digest = %(digest)s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
), touched AS (
    UPDATE dealix.api_keys k
    SET last_used_at = now()
    FROM valid
    WHERE k.id = valid.id AND (k.last_used_at IS NULL OR k.last_used_at < now() - interval '1 minute')
)
SELECT id, customer_id, created_at, last_used_at, expires_at, revoked_at
FROM valid
"""


async def create(
    conn: Connection, customer_id: CustomerId | None, *, valid_s: float | None = None
) -> tuple[ApiKey, str]:
    """A new key for one customer, or with None an ops key; and the key itself, which cannot be had again.

    It ends by itself after `valid_s`; with None never.
    """
    key = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    cursor = await conn.execute(
        _CREATE,
        {
            "id": "key_" + secrets.token_hex(12),
            "digest": digest_of(key),
            "customer_id": customer_id,
            "valid_s": valid_s,
        },
    )
    (row,) = await cursor.fetchall()
    return ApiKey(*row), key


async def all_keys(conn: Connection) -> list[ApiKey]:
    """Every key, oldest first, revoked ones included."""
    cursor = await conn.execute(_ALL)
    return [ApiKey(*row) for row in await cursor.fetchall()]


async def revoke(conn: Connection, key_id: str) -> bool:
    """End a key, from the next request on, on every replica. False where there is none with this id."""
    return (await conn.execute(_REVOKE, {"id": key_id})).rowcount == 1


async def authenticate(conn: Connection, digest: bytes) -> ApiKey | None:
    """The key with this digest, if it is valid now. `last_used_at` is as it was before, exact to a minute."""
    cursor = await conn.execute(_AUTHENTICATE, {"digest": digest})
    row = await cursor.fetchone()
    return None if row is None else ApiKey(*row)
