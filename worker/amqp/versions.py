"""What differs between the versions of RabbitMQ that we work with, 3.10 to 4.x, in one place.

| | 3.10 | 4.0 to 4.2 | from 4.3 on |
|---|---|---|---|
| messages with a priority above 4 | keep their place | go first, two to one | go first |
| a queue without a delivery limit | returns for ever, to its end | drops after 20 returns | the same |
| a consumer that holds a message too long | its channel is closed | the same | it is cancelled |
| the policy `consumer-timeout` | unknown; known from 3.12 on | for all queues | for quorum queues |

So we set a delivery limit of our own (`policies.py`, and `topology.py` for the dead queue), put small
deliveries first also where the broker does not (`domain/headway.py`, `buffer.py`), and consume again after a
cancel (`bulk/consumer.py`; aio-pika does by itself). Transient queues that are not exclusive, and the
prefetch of a whole channel, are deprecated: we declare none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection


class Version(NamedTuple):
    """A broker's version; compared as numbers."""

    major: int
    minor: int

    def __str__(self) -> str:
        """Says both numbers."""
        return f"{self.major}.{self.minor}"


OLDEST: Final = Version(3, 10)
"""The oldest that we work with: older ones hand dead messages of quorum queues on without a confirm."""

CONSUMER_TIMEOUT: Final = Version(3, 12)
"""From here on a policy may say how long a consumer may hold a message."""


def read_version(text: str) -> Version:
    """Reads a version such as `3.10.8` or `4.1.0-rc.1`; what cannot be read is the oldest."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return Version(int(found[1]), int(found[2])) if found else OLDEST


def version_of(connection: AbstractConnection) -> Version:
    """Returns the version that a broker gave when it was connected to; the oldest if it gave none."""
    transport = connection.transport
    told = vars(transport.connection).get("server_properties") if transport is not None else None
    return read_version(str((told or {}).get("version", "")))
