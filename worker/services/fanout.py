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
from worker.db import pages
from worker.db.failures import ERRORS
from worker.db.retrying import Idempotent
from worker.domain.failures import Busy, Stopped

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

_RELEASE_SECONDS: Final = 1
"""Seconds for giving a lease back: another fan-out gets on at once, and otherwise when the lease runs out."""

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
                    await self._wakener.wait(stop, await self._idle_for())
                elif len(leased) < room or len(publishing) >= _PAGES_AT_ONCE:
                    _, publishing = await asyncio.wait(publishing, return_when=asyncio.FIRST_COMPLETED)

    async def _take(self, room: int, channels: list[str]) -> list[Page]:
        lease = {"seconds": self._lease, "owner": self._owner, "channels": channels}
        paced: list[Page] = []
        plain: list[Page] = []
        with contextlib.suppress(Busy):  # what is leased is published, and the rest is leased the next time
            paced = await self._db.until_done(
                Idempotent(lambda: pages.lease_paced(self._db, limit=room, **lease)),  # type: ignore[arg-type]
                "leasing pages with a limit",
            )
            if len(paced) == room:
                return paced
            rest = room - len(paced)
            plain = await self._db.until_done(
                Idempotent(lambda: pages.lease(self._db, after=self._last, limit=rest, **lease)),  # type: ignore[arg-type]
                "leasing pages",
            )
        if plain:
            self._last = plain[-1].delivery_id
        return [*paced, *plain]

    async def _idle_for(self) -> float:
        if len(self._open) < len(self._channels):
            return _LOOK_EVERY  # a queue that is full now may be empty long before the next look for pages
        try:
            asking = Idempotent(lambda: pages.seconds_to_next_turn(self._db))
            turn = await self._db.until_done(asking, "reading the next turn")
        except Busy:
            return self._idle
        return self._idle if turn is None else min(self._idle, max(turn, _SHORTEST_IDLE))

    async def _publish(self, page: Page) -> None:
        """Publishes a page; where that cannot be done now, its lease is given back, or runs out."""
        try:
            await self._publish_leased(page)
        except Busy:
            await self._release(page)
        except (asyncio.CancelledError, Stopped):
            await self._release(page)
            raise

    async def _release(self, page: Page) -> None:
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                await pages.release(self._db, page, self._owner)
        except ERRORS as error:  # the lease runs out by itself too
            log.debug(
                "lease not given back", delivery_id=page.delivery_id, page=page.page, because=str(error)
            )

    async def _publish_leased(self, page: Page) -> None:
        reading = Idempotent(lambda: pages.read_sends(self._db, page))
        sends = await self._db.until_done(reading, "reading a page")
        messages = [
            Outgoing(body.encode(), routing.TYPE_SEND, message_id(page.delivery_id, recipient, attempt))
            for recipient, attempt, body in sends
        ]
        await self._publisher.publish(self._names.exchange(routing.SENDS), page.channel, messages)
        checkpoint = Idempotent(lambda: pages.published(self._db, page, self._owner, self._look_after))
        await self._db.until_done(checkpoint, "checkpointing a page")
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
        waiting = await self._depth.ready(self._names.queue(routing.send_queue(channel)))
        return waiting is not None and waiting < self._high_water
