"""Fan-out: open pages are leased, and one send message per recipient is published with confirms.

A page that is published twice, because a lease ran out or a confirm was lost, is harmless: claims decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Final

import structlog

from contracts import routing
from contracts.sends import message_id
from worker.amqp.messages import Outgoing
from worker.amqp.pika.connection import OUT_OF_REACH
from worker.db import pages
from worker.db.outage import outlast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from contracts.routing import Names
    from worker.amqp.messages import Publisher
    from worker.amqp.topology import QueueDepth
    from worker.db.listen import Wakener
    from worker.db.pages import Page
    from worker.db.pool import Database
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_PAGES_AT_ONCE: Final = 4
"""Pages published side by side: the database reads one while the broker confirms another."""

_LOOK_EVERY: Final = 0.05
"""Seconds between two looks at how much waits in the send queues: time for a thousand messages."""

_SHORTEST_IDLE: Final = 0.01
"""Seconds: a turn that another fan-out is about to take must not be asked for without a pause."""


class FanoutService:
    """Leases pages and publishes them."""

    name = "fanout"

    def __init__(
        self,
        publisher: Publisher,
        depth: QueueDepth,
        wakener: Wakener,
        db: Database,
        names: Names,
        metrics: Metrics,
        *,
        channels: Sequence[str],
        owner: str,
        lease: float,
        look_after: float,
        high_water: int,
        idle: float,
    ) -> None:
        """Takes its parts.

        Args:
            publisher: For the send messages.
            depth: Tells how many messages wait in a queue.
            wakener: Tells when a confirmation made new pages.
            db: The database.
            names: The installation's names.
            metrics: Where to count.
            channels: The sending channels.
            owner: Names this process in its leases.
            lease: Seconds that a lease holds.
            look_after: Seconds after which the scheduler looks at a published page.
            high_water: Messages in a send queue above which its deliveries wait.
            idle: Seconds between two looks for pages when nobody wakes us.
        """
        self._publisher = publisher
        self._depth = depth
        self._wakener = wakener
        self._db = db
        self._names = names
        self._metrics = metrics
        self._channels = channels
        self._owner = owner
        self._lease = lease
        self._look_after = look_after
        self._high_water = high_water
        self._idle = idle
        self._last = 0
        self._looked = -math.inf
        self._open: list[str] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Publishes pages until `stop`; the pages in hand are finished first."""
        publishing: set[asyncio.Task[None]] = set()
        async with self._wakener.listening(), asyncio.TaskGroup() as group:
            while not stop.is_set():
                room = _PAGES_AT_ONCE - len(publishing)
                channels = await self._channels_with_room()
                leased = await self._take(room, channels)
                publishing |= {group.create_task(self._publish(page)) for page in leased}
                if not publishing:
                    await self._wakener.wait(stop, await outlast(self._idle_for, "reading the next turn"))
                elif len(leased) < room or len(publishing) >= _PAGES_AT_ONCE:
                    _, publishing = await asyncio.wait(publishing, return_when=asyncio.FIRST_COMPLETED)

    async def _take(self, room: int, channels: list[str]) -> list[Page]:
        lease = {"seconds": self._lease, "owner": self._owner, "channels": channels}
        paced = await outlast(
            lambda: pages.lease_paced(self._db, limit=room, **lease),  # type: ignore[arg-type]
            "leasing pages with a limit",
        )
        if len(paced) == room:
            return paced
        plain = await outlast(
            lambda: pages.lease(self._db, after=self._last, limit=room - len(paced), **lease),  # type: ignore[arg-type]
            "leasing pages",
        )
        if plain:
            self._last = plain[-1].delivery_id
        return [*paced, *plain]

    async def _idle_for(self) -> float:
        if len(self._open) < len(self._channels):
            return _LOOK_EVERY  # a queue that is full now may be empty long before the next look for pages
        turn = await pages.seconds_to_next_turn(self._db)
        return self._idle if turn is None else min(self._idle, max(turn, _SHORTEST_IDLE))

    async def _publish(self, page: Page) -> None:
        sends = await outlast(lambda: pages.read_sends(self._db, page), "reading a page")
        messages = [
            Outgoing(body.encode(), routing.TYPE_SEND, message_id(page.delivery_id, recipient, attempt))
            for recipient, attempt, body in sends
        ]
        try:
            await self._publisher.publish(self._names.exchange(routing.SENDS), page.channel, messages)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):  # the lease runs out by itself too
                await pages.release(self._db, page, self._owner)
            raise
        await outlast(
            lambda: pages.published(self._db, page, self._owner, self._look_after), "checkpointing a page"
        )
        self._metrics.pages_published.inc()
        self._metrics.sends_published.labels(page.channel).inc(len(messages))
        log.debug("page published", delivery_id=page.delivery_id, page=page.page, messages=len(messages))

    async def _channels_with_room(self) -> list[str]:
        """Names our channels whose send queue is below its mark, as far as the broker says."""
        now = asyncio.get_running_loop().time()
        if now - self._looked >= _LOOK_EVERY:
            self._open = [channel for channel in self._channels if await self._has_room(channel)]
            self._looked = now
        return self._open

    async def _has_room(self, channel: str) -> bool:
        try:
            waiting = await self._depth.ready(self._names.queue(routing.send_queue(channel)))
        except OUT_OF_REACH:
            return False
        return waiting < self._high_water
