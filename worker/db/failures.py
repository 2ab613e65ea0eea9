"""The table from asyncpg's errors to what they mean for us."""

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
"""All that asyncpg raises; a TimeoutError is an OSError."""


class NoConnection(ConnectionError):  # noqa: N818 - the name is the sentence
    """The pool had no connection in time: the server does not answer, or all are in long statements."""


_BY_SQLSTATE: Final[Mapping[str, Failure]] = {
    # The longest prefix counts; what is not listed is BROKEN.
    "08": Failure.AWAY,  # the connection broke
    "08P01": Failure.BROKEN,  # it did not break: one side spoke the protocol wrongly
    "25006": Failure.AWAY,  # the server only reads: a standby, until the failover is over
    "25P03": Failure.BUSY,  # we were idle within a transaction: this process has too much to do
    "25P04": Failure.BUSY,  # the transaction took too long
    "40": Failure.BUSY,  # deadlock, serialization failure: the same transaction again will do
    "53": Failure.BUSY,  # out of memory, of connections, of temporary files: this statement, at this moment
    "53100": Failure.AWAY,  # the disk is full: no transaction fares better until somebody frees some
    "55P03": Failure.BUSY,  # a lock was not to be had in time
    "57014": Failure.BUSY,  # cancelled: by the statement timeout, or by somebody
    "57P01": Failure.AWAY,  # the server shuts down, or an administrator ended the session
    "57P02": Failure.AWAY,  # the server crashed
    "57P03": Failure.AWAY,  # the server starts up
    "57P05": Failure.AWAY,  # the session was idle for too long: the next one will do
    "58030": Failure.AWAY,  # the server cannot read or write its disk
}

_CLOSED: Final = re.compile(
    # asyncpg has no class for it. A connection that is lost between two statements is given back to the
    # pool, and its next user finds the protocol in the state in which it was lost.
    r"connection is closed|connection was closed|released back to the pool|cannot switch to state"
)

_BY_CLASS: Final[tuple[tuple[type[Exception], Failure], ...]] = (
    # The first that fits counts: before its SQLSTATE, and a subclass before its base.
    (InvalidCachedStatementError, Failure.BUSY),  # the schema has changed: it is prepared again
    (OutdatedSchemaCacheError, Failure.BUSY),  # the same
    (asyncpg.TargetServerAttributeNotMatched, Failure.AWAY),  # none of the servers is the primary now
    (ssl.SSLCertVerificationError, Failure.BROKEN),  # a certificate gets no better by waiting
)


def classify(error: BaseException) -> Failure:
    """Says what an error means that was raised while the database was asked.

    A TimeoutError without an errno is asyncpg's own: a statement on a connection that stands took longer than
    the command timeout, which is BUSY. That connecting took too long is a `NoConnection`, which is AWAY.
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
    """Whether the values themselves are refused, so that a row or a message is to blame and nothing else.

    These are SQLSTATE classes 22 (data exception) and 23 (integrity constraint violation), and asyncpg's word
    for a value that it cannot encode, which is class 22 said before the server is asked.
    """
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in {"22", "23"}
    return isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)
