"""Maps the errors of a connection to the SMTP server to a `Failure`."""

from __future__ import annotations

import ssl
from typing import Final

import aiosmtplib

from contracts.results import BounceReason
from worker.channels.email.session import SessionLost
from worker.domain import bounces
from worker.domain.failures import Failure

ERRORS: Final = (aiosmtplib.SMTPException, OSError, SessionLost)
"""All errors that opening a session raises. A TimeoutError is an OSError."""

_SHUTTING_DOWN: Final = 421

_BY_CLASS: Final[tuple[tuple[type[Exception], Failure], ...]] = (
    # The first that fits counts. Errors that are not listed are BROKEN.
    (
        aiosmtplib.SMTPNotSupported,
        Failure.BROKEN,
    ),  # the server lacks STARTTLS or AUTH, which the URL asks for
    (ssl.SSLCertVerificationError, Failure.BROKEN),  # waiting does not mend a certificate
    (aiosmtplib.SMTPConnectError, Failure.AWAY),  # refused, reset, no such host
    (aiosmtplib.SMTPServerDisconnected, Failure.AWAY),
    (aiosmtplib.SMTPTimeoutError, Failure.AWAY),
    (SessionLost, Failure.AWAY),
    (OSError, Failure.AWAY),  # a TimeoutError too: the server does not answer
)


def classify(error: BaseException) -> Failure:
    """Classifies an error that was raised while a session was opened.

    The code of a reply decides: 421, the server closes the connection, is AWAY. Another 4yz, it cannot serve
    us now, is BUSY. 5yz, mostly a refused login, is BROKEN.
    """
    if isinstance(error, aiosmtplib.SMTPResponseException):
        if error.code == _SHUTTING_DOWN:
            return Failure.AWAY
        return Failure.BUSY if error.code // 100 == 4 else Failure.BROKEN  # noqa: PLR2004 - 4yz, it may pass
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return Failure.BROKEN
    for kind, failure in _BY_CLASS:
        if isinstance(error, kind):
            return failure
    return Failure.BROKEN


def is_limit(error: BaseException) -> bool:
    """Whether the server refused a session because there are too many, by its words."""
    if not isinstance(error, aiosmtplib.SMTPResponseException):
        return False
    return bounces.classify(error.code, error.message).reason is BounceReason.RATE_LIMITED
