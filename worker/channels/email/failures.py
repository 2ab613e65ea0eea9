"""The table from what keeps a connection to the SMTP server from being made to what it means for us."""

from __future__ import annotations

import ssl
from typing import Final

import aiosmtplib

from worker.channels.email.session import SessionLost
from worker.domain.failures import Failure

ERRORS: Final = (aiosmtplib.SMTPException, OSError, SessionLost)
"""All that opening a session raises; a TimeoutError is an OSError."""

_SHUTTING_DOWN: Final = 421

_BY_CLASS: Final[tuple[tuple[type[Exception], Failure], ...]] = (
    # The first that fits counts; what is not listed is BROKEN.
    (
        aiosmtplib.SMTPNotSupported,
        Failure.BROKEN,
    ),  # the server lacks STARTTLS or AUTH, which the URL asks for
    (ssl.SSLCertVerificationError, Failure.BROKEN),  # a certificate gets no better by waiting
    (aiosmtplib.SMTPConnectError, Failure.AWAY),  # refused, reset, no such host
    (aiosmtplib.SMTPServerDisconnected, Failure.AWAY),
    (aiosmtplib.SMTPTimeoutError, Failure.AWAY),
    (SessionLost, Failure.AWAY),
    (OSError, Failure.AWAY),  # a TimeoutError too: the server does not answer
)


def classify(error: BaseException) -> Failure:
    """Says what an error means that was raised while a session was opened.

    A reply goes by its code: 421, the server takes its leave, is AWAY; another 4yz, it cannot now, is BUSY;
    5yz, the login above all, is BROKEN.
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
