"""The dead queue keeps messages that cannot be handled, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import structlog

from contracts.routing import DEAD, HEADER_EXCHANGE, HEADER_REASON, HEADER_ROUTING_KEY, Names
from worker.amqp.messages import Outgoing

if TYPE_CHECKING:
    from worker.amqp.messages import Incoming, Publisher
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class Burying(Protocol):
    """Keeps messages that cannot be handled, as `DeadQueue` does."""

    async def bury(self, message: Incoming, reason: str, body: bytes | None = None) -> None:
        """Keeps a message, or the part `body` of it, with the reason."""


class DeadQueue:
    """Publishes messages that cannot be handled to the dead queue."""

    def __init__(self, publisher: Publisher, names: Names, metrics: Metrics) -> None:
        """Takes the publisher, the installation's names, and the metrics."""
        self._publisher = publisher
        self._metrics = metrics
        self._exchange = names.exchange(DEAD)

    async def bury(self, message: Incoming, reason: str, body: bytes | None = None) -> None:
        """Keeps a message, or the bad part of it. Returns when the broker has confirmed it.

        Args:
            message: The message as it arrived; the caller may now acknowledge it.
            reason: A sentence.
            body: The part to keep, if the rest could be handled.
        """
        log.warning("message to the dead queue", routing_key=message.routing_key, reason=reason)
        headers = {
            HEADER_REASON: reason[:1000],
            HEADER_EXCHANGE: message.exchange,
            HEADER_ROUTING_KEY: message.routing_key,
        }
        kept = message.body if body is None else body
        outgoing = Outgoing(kept, message.routing_key, message.message_id, headers=headers)
        await self._publisher.publish(self._exchange, message.routing_key, [outgoing])
        self._metrics.dead_lettered.labels(message.routing_key).inc()
