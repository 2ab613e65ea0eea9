"""The table from aio-pika's errors to what they mean for us."""

from __future__ import annotations

import re
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import aiormq.exceptions as aiormq
from aio_pika.exceptions import AMQPError
from pamqp.exceptions import PAMQPException

from worker.domain.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

ERRORS: Final = (AMQPError, OSError, RuntimeError, PAMQPException)
"""All that aio-pika raises; a TimeoutError is an OSError."""

_CLOSED: Final = re.compile(
    # aio-pika has no class for it. It connects again, and restores channels, by itself.
    r"closed|not opened|not ready|No active transport"
)

_BY_CLASS: Final[tuple[tuple[type[Exception], Failure], ...]] = (
    # The first that fits counts: a subclass before its base. What is not listed is BROKEN.
    (aiormq.ChannelAccessRefused, Failure.BROKEN),  # 403: a permission is missing
    (aiormq.ChannelNotFoundEntity, Failure.BROKEN),  # 404: a queue or an exchange is missing
    (
        aiormq.ChannelPreconditionFailed,
        Failure.BROKEN,
    ),  # 406: it has other properties; a message is too large
    (aiormq.DuplicateConsumerTag, Failure.BROKEN),  # a fault of ours
    (aiormq.ChannelLockedResource, Failure.BUSY),  # 405: another connection has the queue for itself
    (aiormq.AMQPChannelError, Failure.AWAY),  # it went with its connection, or the broker failed within (541)
    (aiormq.ChannelInvalidStateError, Failure.AWAY),  # the same, said by the next call
    (aiormq.PublishError, Failure.BROKEN),  # no queue takes it
    (aiormq.DeliveryError, Failure.BUSY),  # a publish was refused: a queue is full, or has no leader now
    (aiormq.AuthenticationError, Failure.BROKEN),  # the broker does not know the user or the password
    (aiormq.ProbableAuthenticationError, Failure.BROKEN),  # the same
    (aiormq.IncompatibleProtocolError, Failure.BROKEN),  # what answers there is no broker of AMQP 0-9-1
    (aiormq.ConnectionFrameError, Failure.BROKEN),  # 501: we sent what is no frame
    (aiormq.ConnectionSyntaxError, Failure.BROKEN),  # 502: we sent a value that is not allowed
    (aiormq.ConnectionNotImplemented, Failure.BROKEN),  # 540
    (aiormq.ConnectionResourceError, Failure.BUSY),  # 506: the broker is short of something
    # All others, 320 (forced: it shuts down), 503 to 505 (aio-pika spoke on a channel that the broker has not
    # open any more) and 530 (the virtual host is down, as while the broker starts) among them.
    (aiormq.AMQPConnectionError, Failure.AWAY),
    (ssl.SSLCertVerificationError, Failure.BROKEN),  # a certificate gets no better by waiting
    (OSError, Failure.AWAY),  # a TimeoutError too: the broker does not answer
)


def classify(error: BaseException) -> Failure:
    """Says what an error means that was raised while the broker was spoken to over aio-pika."""
    for kind, failure in _BY_CLASS:
        if isinstance(error, kind):
            return failure
    closed = type(error) is RuntimeError and _CLOSED.search(str(error))
    return Failure.AWAY if closed else Failure.BROKEN


@contextmanager
def ignoring_outage() -> Iterator[None]:
    """Ends the block quietly where the broker turns out to be away or busy: for what nothing hangs on."""
    try:
        yield
    except ERRORS as error:
        if classify(error) is Failure.BROKEN:
            raise
