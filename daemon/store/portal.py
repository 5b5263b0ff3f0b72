"""Who may use the portal: links that let a browser in, and the sessions of browsers that are in.

Of links' tokens and of cookies only SHA-256 digests are stored. A session is good as long as the link or key that it
came from: whoever revokes that one ends it, on every replica, from the next request on.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from daemon.ids import CustomerId
from daemon.store.connection import Connection

LINK_S: Final = 3600
"""How long a link is good, and with it every session that began by it."""
KEY_SESSION_S: Final = 12 * 3600
"""How long a session is good that began with an API key: a working day."""
_TOKEN_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Link:
    """A link without its token."""

    id: str
    customer_id: CustomerId
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that is in. `origin` is the id of its link or key; `customer_id` is None for an operator."""

    origin: str
    customer_id: CustomerId | None
    expires_at: datetime


def digest_of(token: str) -> bytes:
    """SHA-256 (32 bytes) of a token, or of anything that somebody presents as one."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def new_token() -> str:
    """43 url-safe characters: not guessable, so that a plain digest needs no salt."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


# Indexes on expires_at. What has ended is kept for a day, so that a support request can be looked into.
_SWEEP_SESSIONS: Final = "DELETE FROM dealix.portal_sessions WHERE expires_at < now() - interval '1 day'"
_SWEEP_LINKS: Final = "DELETE FROM dealix.portal_links WHERE expires_at < now() - interval '1 day'"

_CREATE_LINK: Final = """
INSERT INTO dealix.portal_links (id, digest, customer_id, expires_at)
VALUES (%(id)s, %(digest)s, %(customer_id)s, clock_timestamp() + %(lifetime_s)s * interval '1 s')
RETURNING id, customer_id, expires_at
"""

# Primary key; locks the link's row.
_REVOKE_LINK: Final = """
UPDATE dealix.portal_links
SET revoked_at = coalesce(revoked_at, clock_timestamp())
WHERE id = %(id)s
"""

# Unique indexes on digest. One session for each use of a link, so that signing out ends that browser's alone.
_ENTER_BY_LINK: Final = """
INSERT INTO dealix.portal_sessions (digest, link_id, expires_at)
SELECT %(digest)s, id, expires_at
FROM dealix.portal_links
WHERE digest = %(link_digest)s AND revoked_at IS NULL AND expires_at > now()
RETURNING expires_at
"""

_ENTER_BY_KEY: Final = """
INSERT INTO dealix.portal_sessions (digest, key_id, expires_at)
SELECT %(digest)s, id, least(expires_at, clock_timestamp() + %(lifetime_s)s * interval '1 s')
FROM dealix.api_keys
WHERE digest = %(key_digest)s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
  AND (customer_id IS NULL) = %(is_ops)s
RETURNING expires_at
"""

# Every request of the portal. Primary keys.
_FIND: Final = """
SELECT coalesce(l.id, k.id), coalesce(l.customer_id, k.customer_id), s.expires_at
FROM dealix.portal_sessions s
LEFT JOIN dealix.portal_links l ON l.id = s.link_id
LEFT JOIN dealix.api_keys k ON k.id = s.key_id
WHERE s.digest = %(digest)s AND s.expires_at > now()
  AND (l.revoked_at IS NULL AND l.expires_at > now()
       OR k.revoked_at IS NULL AND k.id IS NOT NULL AND (k.expires_at IS NULL OR k.expires_at > now()))
"""

_LEAVE: Final = "DELETE FROM dealix.portal_sessions WHERE digest = %(digest)s"


async def create_link(conn: Connection, customer_id: CustomerId) -> tuple[Link, str]:
    """A new link for one customer, good for an hour; and its token, which cannot be had again."""
    token = new_token()
    await conn.execute(_SWEEP_LINKS)
    cursor = await conn.execute(
        _CREATE_LINK,
        {
            "id": "plk_" + secrets.token_hex(12),
            "digest": digest_of(token),
            "customer_id": customer_id,
            "lifetime_s": LINK_S,
        },
    )
    (row,) = await cursor.fetchall()
    return Link(*row), token


async def revoke_link(conn: Connection, link_id: str) -> bool:
    """End a link and every session that began by it. False where there is none with this id."""
    return (await conn.execute(_REVOKE_LINK, {"id": link_id})).rowcount == 1


async def enter_by_link(conn: Connection, link_token: str) -> tuple[str, datetime] | None:
    """A new session's cookie and when it ends; None where the link is unknown, expired or revoked."""
    token = new_token()
    await conn.execute(_SWEEP_SESSIONS)
    cursor = await conn.execute(_ENTER_BY_LINK, {"digest": digest_of(token), "link_digest": digest_of(link_token)})
    row = await cursor.fetchone()
    return None if row is None else (token, row[0])


async def enter_by_key(conn: Connection, key: str, *, is_ops: bool) -> tuple[str, datetime] | None:
    """As `enter_by_link`, for an API key: an ops key where `is_ops`, a customer's where not."""
    token = new_token()
    await conn.execute(_SWEEP_SESSIONS)
    cursor = await conn.execute(
        _ENTER_BY_KEY,
        {"digest": digest_of(token), "key_digest": digest_of(key), "is_ops": is_ops, "lifetime_s": KEY_SESSION_S},
    )
    row = await cursor.fetchone()
    return None if row is None else (token, row[0])


async def find(conn: Connection, token: str) -> Session | None:
    """The session with this cookie, if it, and the link or key that it began with, are good now."""
    row = await (await conn.execute(_FIND, {"digest": digest_of(token)})).fetchone()
    return None if row is None else Session(*row)


async def leave(conn: Connection, token: str) -> None:
    """End a session."""
    await conn.execute(_LEAVE, {"digest": digest_of(token)})
