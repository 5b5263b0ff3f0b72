"""Who asks: Bearer keys, looked up by their SHA-256 digest, and what a key may act for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from werkzeug.datastructures import Headers

from api.errors import Problem, invalid, not_found
from daemon.ids import CustomerId
from daemon.store import api_keys
from daemon.store.pool import Pool

LOOK_UP_S: Final = 0.8
"""Every request with a key begins with this. With the second of grace that an interrupted statement gets it keeps the
503 of a database that is away below 2 s; what follows then deals with one that has just answered."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a valid key. `customer_id` is None for an ops key, which acts for every customer."""

    key_id: str
    customer_id: CustomerId | None

    def acting_for(self, given: str | None) -> CustomerId:
        """The customer that a request is about, where it may name one.

        Raises Problem: 403 where a customer's key names another, 422 where an ops key names none.
        """
        if self.customer_id is None:
            if given is None:
                raise invalid("customer_id", "is needed with an ops key")
            return CustomerId(given)
        if given is not None and given != self.customer_id:
            raise Problem(403, "wrong_customer", "The key belongs to another customer than customer_id names.")
        return self.customer_id

    def check_owner(self, owner: CustomerId, what: str) -> None:
        """Raises Problem 404 for the object of another customer, as if it were not there."""
        if self.customer_id is not None and owner != self.customer_id:
            raise not_found(what)

    def require_ops(self) -> None:
        """Raises Problem 403 for a customer's key."""
        if self.customer_id is not None:
            raise Problem(403, "ops_only", "This route needs an ops key.")


def unauthorized() -> Problem:
    """401, the same for every cause: whoever guesses keys learns nothing from it."""
    return Problem(
        401,
        "unauthorized",
        "A valid key is needed: Authorization: Bearer dlx_…",
        headers={"WWW-Authenticate": "Bearer"},
    )


async def authenticate(pool: Pool, headers: Headers) -> Caller:
    """The caller whose key a request carries. Raises Problem 401, DatabaseUnavailable.

    The digest is what is compared, by Postgres' index: its timing tells nothing about a key.
    """
    token = _token(headers)
    async with pool.connection(LOOK_UP_S) as conn:
        key = await api_keys.authenticate(conn, hashlib.sha256(token).digest())
    if key is None:
        raise unauthorized()
    return Caller(key.id, key.customer_id)


def _token(headers: Headers) -> bytes:
    given = headers.getlist("Authorization")
    if len(given) != 1:  # two of them: whatever stands before us may have looked at the other one
        raise unauthorized()
    scheme, _, token = given[0].partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise unauthorized()
    return token.encode("latin-1")  # as the header came: ASGI's bytes were decoded by latin-1
