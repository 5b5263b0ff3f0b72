"""Who asks: Bearer keys, looked up by their SHA-256 digest, and what a key may act for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from quart import Request
from werkzeug.datastructures import Headers

from api.client_address import client_address
from api.errors import Problem, invalid, not_found
from api.services import FIRST_S, Services
from daemon.errors import DatabaseUnavailable
from daemon.ids import CustomerId
from daemon.store import api_keys


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


async def authenticate(services: Services, request: Request) -> Caller:
    """The caller whose key a request carries. Raises Problem 401 or 429, DatabaseUnavailable.

    The digest is what is compared, by Postgres' index: its timing tells nothing about a key. Every text that is shown
    as a key is looked up, whatever it looks like, so that all of them cost the same.
    """
    guessing = services.limits.key_guessing
    address = client_address(request.remote_addr, request.headers, services.settings.api.trusted_proxies)
    token = _token(request.headers)
    digest = None if token is None else hashlib.sha256(token).digest()
    guessing.begin(address, digest)
    if digest is None:
        raise unauthorized()
    try:
        async with services.pool.connection(FIRST_S) as conn:
            key = await api_keys.authenticate(conn, digest)
    except DatabaseUnavailable:
        guessing.undecided(address, digest)
        raise
    if key is None:
        guessing.bad(address, digest)
        raise unauthorized()
    guessing.good(address, digest)
    return Caller(key.id, key.customer_id)


def _token(headers: Headers) -> bytes | None:
    """What is shown as a key; None where nothing is."""
    given = headers.getlist("Authorization")
    if len(given) != 1:  # two of them: whatever stands before us may have looked at the other one
        return None
    scheme, _, token = given[0].partition(" ")
    if scheme.lower() != "bearer" or not token:
        return None
    return token.encode("latin-1")  # as the header came: ASGI's bytes were decoded by latin-1
