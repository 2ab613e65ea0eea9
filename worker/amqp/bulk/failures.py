"""Maps the errors of the bulk transport to a `Failure`."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

from worker.amqp.bulk.errors import AmqpChannelClosed, ConnectionClosed, ConnectionLost, ProtocolError
from worker.amqp.errors import BrokerUnreachable
from worker.domain.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

_BY_CODE: Final[Mapping[int, Failure]] = {
    # AMQP reply codes of a connection or a channel that the broker closed. Codes that are not listed are
    # BROKEN.
    320: Failure.AWAY,  # forced: the broker shuts down, or an operator closed it
    404: Failure.AWAY,  # a queue is gone; `sendoff migrate` declares it again, and readiness names it
    405: Failure.BUSY,  # another connection has the queue for itself
    506: Failure.BUSY,  # the broker lacks a resource
    530: Failure.AWAY,  # the virtual host is down (the broker starts), or has too many connections
    541: Failure.AWAY,  # the broker failed, for example while a queue has no leader
}


def classify(error: BaseException) -> Failure:
    """Classifies an error that ended a connection, or an attempt to open one.

    403 (the user, the password or a permission) is BROKEN. Bytes that are not AMQP are BROKEN. A connection
    that ends without any byte is AWAY: a proxy hangs up when its broker is away.
    """
    if isinstance(error, BrokerUnreachable) and error.__cause__ is not None:
        return classify(error.__cause__)
    if isinstance(error, (ConnectionClosed, AmqpChannelClosed)):
        return _BY_CODE.get(error.code, Failure.BROKEN)
    if isinstance(error, (ProtocolError, ssl.SSLCertVerificationError)):
        return Failure.BROKEN
    return Failure.AWAY if isinstance(error, (ConnectionLost, OSError)) else Failure.BROKEN
