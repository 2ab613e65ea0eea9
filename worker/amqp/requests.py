"""Takes requests and commands one after the other, and publishes answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from worker.amqp.consuming import consuming
from worker.amqp.messages import Outgoing
from worker.domain.failures import NO_MESSAGES_FAULT, Busy

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from worker.amqp.dead import Burying
    from worker.amqp.messages import Consumer, Incoming, Publisher

log = structlog.get_logger(__name__)


async def take_each(
    consumer: Consumer, dead: Burying, handle: Callable[[Incoming], Awaitable[object]], stop: asyncio.Event
) -> None:
    """Handles a consumer's messages, one after the other, until `stop`.

    A message whose handling raises goes to the dead queue: it would raise again at the next delivery, and
    delay others. A message for which a server was too busy goes there too, and can be replayed.

    Raises:
        Broken, Stopped: no message is the cause, and none goes to the dead queue.
    """
    async with consuming(consumer, stop):
        while batch := await consumer.batch(1):
            (message,) = batch
            try:
                await handle(message)
            except NO_MESSAGES_FAULT:
                raise
            except Busy as busy:
                await dead.bury(message, str(busy))
            except Exception as error:
                # A fault of our code with one request must not end the service for all others.
                log.exception(
                    "request failed", routing_key=message.routing_key, message_id=message.message_id
                )
                await dead.bury(message, f"It could not be handled: {error!r}")
            consumer.acknowledge(batch)


async def reply_to(publisher: Publisher, message: Incoming, body: bytes, kind: str) -> None:
    """Publishes an answer to a message's `reply_to` with its `correlation_id`, if any queue takes it."""
    answer = Outgoing(body, kind, correlation_id=message.correlation_id or message.message_id)
    await publisher.publish("", message.reply_to or "", [answer], mandatory=False)
