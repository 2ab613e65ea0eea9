"""Events: publishes the events that the moves of deliveries put into the outbox.

An event is deleted from the outbox after the broker has confirmed it. Until then nobody takes the next event
of its delivery. So each event is published at least once, and the events of a delivery are published in their
order, with any number of processes, even if some of them die.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from contracts import routing
from worker.amqp.messages import Outgoing
from worker.crashing import crash_point
from worker.db.retrying import Idempotent
from worker.domain.failures import Busy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from contracts.events import DeliveryEvent
    from worker.amqp.messages import Publisher
    from worker.db.retrying import Retrying
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 200


class Outbox(Protocol):
    """The events that are to be published: `worker.db.events.Outbox`."""

    async def take(self, limit: int, lease: float) -> list[DeliveryEvent]:
        """Leases the oldest event of each delivery that nobody has leased, for `lease` seconds."""

    async def drop(self, events: Sequence[DeliveryEvent]) -> None:
        """Deletes published events."""

    async def release(self, events: Sequence[DeliveryEvent]) -> None:
        """Ends the leases of events that were not published."""


class Wakener(Protocol):
    """Wakes when a move put an event into the outbox: `worker.db.listen.Wakener`."""

    def listening(self) -> AbstractAsyncContextManager[None]:
        """Listens while the block runs."""

    async def wait(self, stop: asyncio.Event, seconds: float) -> None:
        """Returns when there is an event, `stop` was set, or the seconds are over."""


@dataclass(frozen=True, slots=True)
class EventsParts:
    """The parts of the service."""

    outbox: Outbox
    """Holds the events."""
    wakener: Wakener
    """Ends the wait between two looks early."""
    retrying: Retrying
    """Executes transactions."""
    publisher: Publisher
    """Publishes the events."""
    names: routing.Names
    """The installation's names."""
    metrics: Metrics
    """The metrics."""


@dataclass(frozen=True, slots=True)
class EventsLimits:
    """The times of the service."""

    idle: float
    """Seconds between two looks without a notification."""
    lease: float
    """Seconds of a lease. The broker has half of them to confirm."""


class EventsService:
    """Publishes the outbox."""

    name = "events"

    def __init__(self, parts: EventsParts, limits: EventsLimits) -> None:
        """Takes its parts and its limits."""
        self._parts = parts
        self._limits = limits
        self._exchange = parts.names.exchange(routing.EVENTS)

    async def run(self, stop: asyncio.Event) -> None:
        """Publishes events until `stop`."""
        wakener = self._parts.wakener
        async with wakener.listening():
            while not stop.is_set():
                if not await self.handle():
                    await wakener.wait(stop, self._limits.idle)

    async def handle(self) -> int:
        """Publishes the oldest event of each delivery, and deletes those that the broker has confirmed.

        Returns:
            How many it published. It is 0 too if the broker does not confirm them in time, or the database is
            too busy: then they stay in the outbox.

        Raises:
            Broken, Stopped: as `worker.db.retrying.Retrier.until_done`.
        """
        try:
            return await self._parts.retrying.until_done(
                Idempotent(self._publish_oldest), "publishing events"
            )
        except Busy:
            return 0

    async def _publish_oldest(self) -> int:
        outbox = self._parts.outbox
        taken = await outbox.take(_AT_ONCE, self._limits.lease)
        if not taken:
            return 0
        crash_point("event.leased")
        try:
            async with asyncio.timeout(self._limits.lease / 2):
                async with asyncio.TaskGroup() as group:
                    for event in taken:
                        group.create_task(self._publish(event))
        except TimeoutError:
            log.warning("the broker does not confirm: events stay in the outbox", events=len(taken))
            await outbox.release(taken)
            return 0
        crash_point("event.confirmed")
        await outbox.drop(taken)
        crash_point("event.deleted")
        self._parts.metrics.events_published.inc(len(taken))
        return len(taken)

    async def _publish(self, event: DeliveryEvent) -> None:
        key = event.event.value
        message = Outgoing(event.model_dump_json().encode(), key, message_id=event.event_id)
        await self._parts.publisher.publish(self._exchange, key, [message], mandatory=False)
