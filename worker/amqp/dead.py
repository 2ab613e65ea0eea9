"""The dead queue: what cannot be handled is kept there, with the reason."""

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
    """Keeps what cannot be handled: `DeadQueue` does."""

    async def bury(self, message: Incoming, reason: str, body: bytes | None = None) -> None:
        """Keeps a message, or the part `body` of it, with the sentence that says why."""


class DeadQueue:
    """Publishes what cannot be handled to the dead queue."""

    def __init__(self, publisher: Publisher, names: Names, metrics: Metrics) -> None:
        """Takes the publisher, the installation's names, and where to count."""
        self._publisher = publisher
        self._metrics = metrics
        self._exchange = names.exchange(DEAD)

    async def bury(self, message: Incoming, reason: str, body: bytes | None = None) -> None:
        """Keeps a message, or the bad part of it; returns when the broker has it: then it may be settled.

        Args:
            message: What arrived.
            reason: A sentence.
            body: The part to keep, where the rest could be handled.
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
