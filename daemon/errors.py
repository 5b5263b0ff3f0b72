"""Every exception that crosses a floor: broken promises and outages. Expected failure is a return value."""

from __future__ import annotations

from typing import Literal


class DealixError(Exception):
    """Base of all own errors. The text is fit to be shown to a person: no secret, SQL or traceback in it."""


class SettingsInvalid(DealixError):
    """The configuration has faults; the text lists all of them, one a line."""


class DatabaseUnavailable(DealixError):
    """No connection, a lost connection, or no answer within the deadline. Trying again later is right.

    `sqlstate` is the server's five-character code where the server gave one, else None.
    """

    def __init__(self, detail: str, *, sqlstate: str | None = None) -> None:
        super().__init__(detail)
        self.sqlstate = sqlstate


class DatabaseRefused(DealixError):
    """The database understood and said no: a missing right, a missing table. Trying again changes nothing."""


class CommitUnknown(DatabaseUnavailable):
    """A COMMIT was sent and its answer never came: it may or may not have happened."""


class BatchRefused(DealixError):
    """The database does not take a batch of results as it is: a bug, not an outage."""


class SchemaMismatch(DealixError):
    """The database's schema is older or newer than this program."""


class EmbeddedPostgresFailed(DealixError):
    """The embedded Postgres could not be set up, started or stopped."""


class SealBroken(DealixError):
    """A sealed secret does not open: another key, another row, or damaged bytes."""


class SealingKeyMissing(SealBroken):
    """A sealed secret needs a key that was not given."""


class EndpointUrlInvalid(DealixError):
    """An endpoint URL that cannot be accepted. `kind` tells which class of fault it is."""

    def __init__(self, kind: Literal["scheme", "malformed", "forbidden"], detail: str) -> None:
        super().__init__(detail)
        self.kind: Literal["scheme", "malformed", "forbidden"] = kind


class EmitRejected(DealixError):
    """`dealix.emit` refused an event. `sqlstate` is 22023, 22P02 or 23505 (contract: emitting from SQL).

    `index` is the place (from 0) of the refused event in a batch, None where one event was emitted alone.
    """

    def __init__(self, sqlstate: str, detail: str, *, index: int | None = None) -> None:
        super().__init__(detail)
        self.sqlstate = sqlstate
        self.index = index


class SubscriptionLimit(DealixError):
    """The customer has as many subscriptions as one may have."""


class ImportConflict(DealixError):
    """A subscription to be imported exists already, with other contents."""


class RequestUnsafe(DealixError):
    """A header or target of an outgoing request could break out of its line. It should never have been stored."""
