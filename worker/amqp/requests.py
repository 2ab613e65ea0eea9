"""Commands: it handles those of one delivery one after the other, and answers them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import structlog

from worker.amqp.consuming import consuming
from worker.amqp.dead import Letter
from worker.amqp.messages import Outgoing
from worker.amqp.octets import short
from worker.crashing import crash_point
from worker.domain.failures import NO_MESSAGES_FAULT, Busy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from worker.amqp.dead import Burying
    from worker.amqp.messages import Consumer, Incoming, Publisher

log = structlog.get_logger(__name__)


async def take_each(
    consumer: Consumer,
    dead: Burying,
    handle: Callable[[Incoming], Awaitable[object]],
    place: Callable[[Incoming], tuple[Hashable, asyncio.Semaphore]],
    stop: asyncio.Event,
) -> None:
    """Handles what a consumer delivers until `stop`; what is not begun by then goes back to its queue.

    A message whose handling raises goes to the dead queue: it would raise again at the next delivery, and
    delay others. A message for which a server was too busy goes there too, and can be replayed.

    Args:
        consumer: Its prefetch bounds what waits here.
        dead: Where messages are set apart.
        handle: Handles one message.
        place: Returns the line of a message, and the semaphore that it takes a permit of. The messages of a
            line are handled in their order, different lines side by side.
        stop: Ends it.

    Raises:
        Broken, Stopped: no message is to blame, and none is set apart; in an ExceptionGroup.
    """
    lines: dict[Hashable, deque[Incoming]] = {}

    async def serve(line: Hashable) -> None:
        while lines[line] and not stop.is_set():
            message = lines[line][0]
            async with place(message)[1]:
                if not stop.is_set():
                    await _handle_one(message, consumer, dead, handle)
            lines[line].popleft()
        del lines[line]

    async with consuming(consumer, stop), asyncio.TaskGroup() as group:
        while batch := await consumer.batch(1):
            (message,) = batch
            line, _ = place(message)
            if line in lines:
                lines[line].append(message)
            else:
                lines[line] = deque(batch)
                group.create_task(serve(line))


async def _handle_one(
    message: Incoming, consumer: Consumer, dead: Burying, handle: Callable[[Incoming], Awaitable[object]]
) -> None:
    try:
        await handle(message)
        crash_point("request.handled")
    except NO_MESSAGES_FAULT:
        raise
    except Busy as busy:
        await dead.bury(Letter(message, str(busy)))
    except Exception as error:
        # A fault of ours with one request must not end the service for all others.
        log.exception("request failed", routing_key=message.routing_key, message_id=message.message_id)
        await dead.bury(Letter(message, f"It could not be handled: {error!r}"))
    consumer.acknowledge([message])


async def reply_to(publisher: Publisher, message: Incoming, body: bytes, kind: str) -> None:
    """Publishes an answer to a message's `reply_to` with its `correlation_id`; nobody there is no error."""
    told = message.correlation_id or message.message_id
    answer = Outgoing(body, kind, correlation_id=short(told) if told else None)
    await publisher.publish("", short(message.reply_to or ""), [answer], mandatory=False)
