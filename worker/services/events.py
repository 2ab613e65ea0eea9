"""Events: what the moves of deliveries put into the outbox is told to whoever listens.

An event is deleted from the outbox once the broker has confirmed it, and until then nobody takes the next one
of its delivery. So each is published at least once, and those of a delivery in their order, however many
processes run and whichever of them die.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from contracts import routing
from worker.amqp.messages import Outgoing
from worker.db import events
from worker.db.retrying import Idempotent
from worker.domain.failures import Busy

if TYPE_CHECKING:
    from contracts.events import DeliveryEvent
    from worker.amqp.messages import Publisher
    from worker.db.listen import Wakener
    from worker.db.pool import Database
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 200


class EventsService:
    """Publishes the outbox."""

    name = "events"

    def __init__(
        self,
        publisher: Publisher,
        wakener: Wakener,
        db: Database,
        names: routing.Names,
        metrics: Metrics,
        *,
        idle: float,
        lease: float,
    ) -> None:
        """Takes its parts.

        Args:
            publisher: For the events.
            wakener: Tells when a move put one into the outbox.
            db: The database.
            names: The installation's names.
            metrics: What is counted.
            idle: Seconds between two looks when nobody wakes us.
            lease: Seconds for which taken events are ours; the broker has half of them to confirm.
        """
        self._publisher = publisher
        self._wakener = wakener
        self._db = db
        self._exchange = names.exchange(routing.EVENTS)
        self._metrics = metrics
        self._idle = idle
        self._lease = lease

    async def run(self, stop: asyncio.Event) -> None:
        """Publishes events until `stop`."""
        async with self._wakener.listening():
            while not stop.is_set():
                if not await self._told():
                    await self._wakener.wait(stop, self._idle)

    async def _told(self) -> int:
        try:
            return await self._db.until_done(Idempotent(self._tell), "publishing events")
        except Busy:
            return 0  # they stay in the outbox

    async def _tell(self) -> int:
        """Publishes the oldest event of each delivery; returns how many."""
        heads = await events.take(self._db, _AT_ONCE, self._lease)
        if not heads:
            return 0
        try:
            async with asyncio.timeout(self._lease / 2):
                async with asyncio.TaskGroup() as group:
                    for event in heads:
                        group.create_task(self._publish(event))
        except TimeoutError:
            log.warning("the broker does not confirm: events stay in the outbox", events=len(heads))
            await events.release(self._db, heads)
            return 0
        await events.drop(self._db, heads)
        self._metrics.events_published.inc(len(heads))
        return len(heads)

    async def _publish(self, event: DeliveryEvent) -> None:
        key = event.event.value
        message = Outgoing(event.model_dump_json().encode(), key, message_id=event.event_id)
        await self._publisher.publish(self._exchange, key, [message], mandatory=False)
