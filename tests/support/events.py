"""What is told of deliveries: a queue that hears it, and what waits to be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts import routing
from contracts.events import DeliveryEvent
from tests.support.stack import until

if TYPE_CHECKING:
    from aio_pika.abc import AbstractQueue

    from tests.support.stack import Stack


SCHEDULED = "[schedule]\ncontact_date = 2099-01-01T09:00:00Z"
CONFIRMED, STARTED, PAUSED, RESUMED, STOPPED, FINISHED = (
    f"delivery.{e}" for e in ("confirmed", "started", "paused", "resumed", "stopped", "finished")
)


async def listener(stack: Stack, key: str = "delivery.*") -> AbstractQueue:
    queue = await stack.channel.declare_queue(exclusive=True)
    await queue.bind(stack.names.exchange(routing.EVENTS), key)
    return queue


async def heard(queue: AbstractQueue, count: int) -> list[DeliveryEvent]:
    """Takes so many events out of a queue; each must be what the wire says."""
    found = []
    while len(found) < count:
        message = await until(lambda: queue.get(fail=False, no_ack=True))
        event = DeliveryEvent.model_validate_json(message.body)
        assert (message.message_id, message.type) == (event.event_id, event.event.value)
        assert message.routing_key == event.event.value
        found.append(event)
    return found


async def outbox(stack: Stack) -> int:
    return len(await stack.rows("SELECT 1 FROM sendoff.event"))
