"""Which errors of the driver are outages: one rule for everything that talks to Postgres."""

from __future__ import annotations

from typing import Final

import psycopg

from daemon.errors import DatabaseUnavailable

# SQLSTATE classes and codes (Postgres manual, appendix A) after which the same request is right again, later or on
# another connection. All other codes are answers to the request itself and belong to whoever made it.
_OUTAGES: Final = (
    "08",  # connection exception
    "25006",  # read-only transaction: this server was the primary and is one no longer
    "25P03",  # idle-in-transaction timeout: the server has hung up
    "25P04",  # transaction timeout, as above
    "40",  # rolled back: deadlock, serialization failure
    "53",  # out of disk, memory, connections
    "55P03",  # lock not available within lock_timeout
    "57",  # shutdown, start-up, cancelled by a timeout or an administrator
    "58",  # I/O error of the server
)

_STALE_SESSION: Final = (
    "0A000",  # "cached plan must not change result type": a migration changed a table below a prepared statement
    "26000",  # the prepared statement is gone: DISCARD ALL, or a pooler gave us another server connection
)
"""The session no longer is what the driver believes; a fresh connection cures it."""


def outage(error: psycopg.Error, *, connection_lost: bool = False) -> DatabaseUnavailable | None:
    """The outage that `error` stands for; None where it is an answer to the statement, which the caller must handle.

    `connection_lost`: the connection is closed by now, so that whatever was said last, the statement has no answer.
    """
    sqlstate = error.sqlstate
    if sqlstate is None:
        # psycopg's own: lost or closed connections are plain OperationalErrors. An aborted pipeline only follows
        # upon the real error of an earlier statement.
        unavailable = isinstance(error, psycopg.OperationalError) and not isinstance(
            error, psycopg.errors.PipelineAborted
        )
    else:
        unavailable = sqlstate.startswith(_OUTAGES) or makes_stale(error) or is_notify_queue_full(error)
    if not unavailable and not connection_lost:
        return None
    return DatabaseUnavailable(f"the database is unavailable: {first_line(error)}", sqlstate=sqlstate)


def makes_stale(error: psycopg.Error) -> bool:
    """Whether the session should not be used again although the connection stands."""
    if error.sqlstate == "0A000":
        return "cached plan" in first_line(error)
    return error.sqlstate in _STALE_SESSION or error.sqlstate == "25006"


def is_notify_queue_full(error: psycopg.Error) -> bool:
    """Whether a COMMIT failed because the server's NOTIFY queue takes no more.

    Its code, 54000, stands for other limits too, and its text depends on the server's language.
    """
    return error.sqlstate == "54000" and error.diag.source_file == "async.c"


def first_line(error: psycopg.Error) -> str:
    """What went wrong in one line: the server's primary message where there is one, never SQL or detail of rows."""
    text = error.diag.message_primary or str(error)
    return text.strip().partition("\n")[0].strip() or type(error).__name__
