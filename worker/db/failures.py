"""Maps asyncpg's errors to a `Failure`."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Final

import asyncpg
from asyncpg.exceptions import InvalidCachedStatementError, OutdatedSchemaCacheError

from worker.domain.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

ERRORS: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""All errors that asyncpg raises. A TimeoutError is an OSError."""


class NoConnection(ConnectionError):
    """The pool had no free connection in time: the server does not answer, or all run long statements."""


_BY_SQLSTATE: Final[Mapping[str, Failure]] = {
    # The longest prefix counts. Codes that are not listed are BROKEN.
    "08": Failure.AWAY,  # the connection broke
    "08P01": Failure.BROKEN,  # it did not break: one side violated the protocol
    "25006": Failure.AWAY,  # the server is read-only: a standby, until the failover is over
    "25P03": Failure.BUSY,  # we were idle in a transaction: this process is overloaded
    "25P04": Failure.BUSY,  # the transaction took too long
    "40": Failure.BUSY,  # deadlock, serialization failure: the same transaction may work again
    "53": Failure.BUSY,  # out of memory, of connections, of temporary files: this statement, at this moment
    "53100": Failure.AWAY,  # the disk is full: no transaction works until somebody frees space
    "55P03": Failure.BUSY,  # a lock was not free in time
    "57014": Failure.BUSY,  # cancelled: by the statement timeout, or by somebody
    "57P01": Failure.AWAY,  # the server shuts down, or an administrator ended the session
    "57P02": Failure.AWAY,  # the server crashed
    "57P03": Failure.AWAY,  # the server starts up
    "57P05": Failure.AWAY,  # the session was idle for too long: a new session works
    "58030": Failure.AWAY,  # the server cannot read or write its disk
}

_CLOSED: Final = re.compile(
    # asyncpg has no class for these errors. A connection that is lost between two statements returns to the
    # pool, and its next user finds its protocol in a wrong state.
    r"connection is closed|connection was closed|released back to the pool|cannot switch to state"
)

_BY_CLASS: Final[tuple[tuple[type[Exception], Failure], ...]] = (
    # The first that fits counts: these come before the SQLSTATE, and a subclass comes before its base.
    (InvalidCachedStatementError, Failure.BUSY),  # the schema has changed: the statement is prepared again
    (OutdatedSchemaCacheError, Failure.BUSY),  # the same
    (asyncpg.TargetServerAttributeNotMatched, Failure.AWAY),  # none of the servers is the primary now
    (ssl.SSLCertVerificationError, Failure.BROKEN),  # waiting does not mend a certificate
)


def classify(error: BaseException) -> Failure:
    """Classifies an error of a call to the database.

    A TimeoutError without an errno comes from asyncpg: a statement on an open connection took longer than the
    command timeout, which is BUSY. If connecting took too long, the error is a `NoConnection`, which is AWAY.
    """
    for kind, failure in _BY_CLASS:
        if isinstance(error, kind):
            return failure
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return _BY_SQLSTATE.get(state) or _BY_SQLSTATE.get(state[:2]) or Failure.BROKEN
    if isinstance(error, (asyncpg.InterfaceError, asyncpg.InternalClientError)):
        return Failure.AWAY if _CLOSED.search(str(error)) else Failure.BROKEN
    if isinstance(error, TimeoutError) and error.errno is None:
        return Failure.BUSY
    return Failure.AWAY if isinstance(error, OSError) else Failure.BROKEN


def is_about_the_data(error: BaseException) -> bool:
    """Whether the database refuses the values themselves, so that a row or a message is the cause.

    These are SQLSTATE classes 22 (data exception) and 23 (integrity constraint violation), and asyncpg's
    error for a value that it cannot encode before the server is asked.
    """
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in {"22", "23"}
    return isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)
