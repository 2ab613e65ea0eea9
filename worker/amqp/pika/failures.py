"""Maps aio-pika's errors to a `Failure`."""

from __future__ import annotations

import re
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import aiormq.exceptions as aiormq

from worker.domain.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

ERRORS: Final = (Exception,)
"""All errors that aio-pika raises, for `classify`. The bare class is among them: a call that waits when the
broker closes the connection without a word ends with it."""

_CLOSED: Final = re.compile(
    # aio-pika has no class for these errors. It connects again, and restores channels, by itself.
    r"closed|not opened|not ready|No active transport"
)

_BY_CLASS: Final[tuple[tuple[type[Exception], Failure], ...]] = (
    # The first that fits counts: a subclass comes before its base. Errors that are not listed are BROKEN.
    (aiormq.ChannelAccessRefused, Failure.BROKEN),  # 403: a permission is missing
    (aiormq.ChannelNotFoundEntity, Failure.BROKEN),  # 404: a queue or an exchange is missing
    (
        aiormq.ChannelPreconditionFailed,
        Failure.BROKEN,
    ),  # 406: it has other properties; a message is too large
    (aiormq.DuplicateConsumerTag, Failure.BROKEN),  # a fault of ours
    (aiormq.ChannelLockedResource, Failure.BUSY),  # 405: another connection has the queue for itself
    (aiormq.AMQPChannelError, Failure.AWAY),  # its connection was lost, or the broker failed (541)
    (aiormq.ChannelInvalidStateError, Failure.AWAY),  # the same, said by the next call
    (aiormq.PublishError, Failure.BROKEN),  # no queue takes it
    (aiormq.DeliveryError, Failure.BUSY),  # a publish was refused: a queue is full, or has no leader now
    (aiormq.AuthenticationError, Failure.BROKEN),  # the broker does not know the user or the password
    (aiormq.ProbableAuthenticationError, Failure.BROKEN),  # the same
    (aiormq.IncompatibleProtocolError, Failure.BROKEN),  # the server is not a broker of AMQP 0-9-1
    (aiormq.ConnectionFrameError, Failure.BROKEN),  # 501: we sent bytes that are not a frame
    (aiormq.ConnectionSyntaxError, Failure.BROKEN),  # 502: we sent a value that is not allowed
    (aiormq.ConnectionNotImplemented, Failure.BROKEN),  # 540
    (aiormq.ConnectionResourceError, Failure.BUSY),  # 506: the broker lacks a resource
    # All others, for example 320 (forced: the broker shuts down), 503 to 505 (aio-pika used a channel that
    # the broker has closed) and 530 (the virtual host is down, for example while the broker starts).
    (aiormq.AMQPConnectionError, Failure.AWAY),
    (ssl.SSLCertVerificationError, Failure.BROKEN),  # waiting does not mend a certificate
    (OSError, Failure.AWAY),  # a TimeoutError too: the broker does not answer
)


def classify(error: BaseException) -> Failure:
    """Classifies an error of a call to the broker over aio-pika."""
    for kind, failure in _BY_CLASS:
        if isinstance(error, kind):
            return failure
    closed = type(error) is Exception or (type(error) is RuntimeError and _CLOSED.search(str(error)))
    return Failure.AWAY if closed else Failure.BROKEN


@contextmanager
def ignoring_outage() -> Iterator[None]:
    """Ends the block silently if the broker is away or busy: for calls that may fail."""
    try:
        yield
    except ERRORS as error:
        if classify(error) is Failure.BROKEN:
            raise
