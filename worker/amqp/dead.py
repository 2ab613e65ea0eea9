"""The dead queue keeps messages that cannot be handled, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import structlog

from contracts.routing import BINDINGS, DEAD, HEADER_EXCHANGE, HEADER_REASON, HEADER_ROUTING_KEY
from worker.amqp.messages import Outgoing
from worker.amqp.octets import short
from worker.crashing import crash_point
from worker.telemetry.metrics import OTHER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from contracts.routing import Names
    from worker.amqp.messages import Incoming, Publisher
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_REASON_KEPT: Final = 1_000
"""Characters of a reason."""


class Letter(NamedTuple):
    """What cannot be handled."""

    message: Incoming
    """What arrived."""
    reason: str
    """A sentence that says why."""
    body: bytes | None = None
    """The part to keep, where the rest could be handled."""


class Burying(Protocol):
    """Keeps messages that cannot be handled, as `DeadQueue` does."""

    async def bury(self, *letters: Letter) -> None:
        """Keeps messages, or parts of them, each with the sentence that says why."""


class DeadQueue:
    """Publishes messages that cannot be handled to the dead queue."""

    def __init__(self, publisher: Publisher, names: Names, channels: Iterable[str], metrics: Metrics) -> None:
        """Takes the publisher, the installation's names and channels, and where to count."""
        self._publisher = publisher
        self._metrics = metrics
        self._exchange = names.exchange(DEAD)
        self._labels = {key for _, keys in BINDINGS.values() for key in keys} | set(channels)
        for label in (*self._labels, OTHER):
            metrics.dead_lettered.labels(label)  # there from the start, at 0

    async def bury(self, *letters: Letter) -> None:
        """Keeps messages; returns when the broker has them all: then they may be settled.

        They are published together, since a confirm takes 5 ms. What a publisher wrote is cut to what AMQP
        carries, so that no message makes this raise.
        """
        outgoing = []
        for message, reason, body in letters:
            key = short(message.routing_key)
            log.warning("message to the dead queue", routing_key=key, reason=reason)
            headers = {
                HEADER_REASON: reason[:_REASON_KEPT].encode(errors="replace").decode(),
                HEADER_EXCHANGE: short(message.exchange),
                HEADER_ROUTING_KEY: key,
            }
            message_id = short(message.message_id) if message.message_id else None
            kept = message.body if body is None else body
            outgoing.append(Outgoing(kept, key, message_id, headers=headers))
        if not outgoing:
            return
        # The exchange is a fanout, which needs no key.
        await self._publisher.publish(self._exchange, "", outgoing)
        crash_point("dead.confirmed")
        for letter in outgoing:
            # A label's values are a closed set: each is a series for as long as the process lives.
            self._metrics.dead_lettered.labels(letter.type if letter.type in self._labels else OTHER).inc()
