"""Fan-out: leases open pages, and publishes one send message per recipient with confirms.

A page that is published twice, because a lease expired or a confirm was lost, is harmless: claims decide. How
far it runs ahead of the senders is in `worker/domain/headway.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from contracts import routing
from contracts.sends import message_id
from worker.amqp.messages import Outgoing, Unroutable
from worker.crashing import crash_point
from worker.db.failures import ERRORS
from worker.db.pages import Turn
from worker.db.retrying import Idempotent
from worker.domain.failures import Busy, Stopped
from worker.domain.headway import Headway
from worker.lifecycle import beside

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from contracts.routing import Names
    from worker.amqp.messages import Depth, Publisher
    from worker.db.pages import Page
    from worker.db.retrying import Retrying
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_PAGES_AT_ONCE: Final = 4
"""Pages that are published at the same time: the database reads one while the broker confirms another."""

_SMALL_AT_ONCE: Final = 4
"""Pages of small deliveries that are published beside them."""

_PRIORITY: Final = 5
"""The priority of their messages: the lowest that RabbitMQ 4 delivers before messages without one."""

_LOOK_EVERY: Final = 0.02
"""Seconds between two looks at the depth of the send queues: time for a few hundred messages."""

_RELEASE_SECONDS: Final = 1
"""Seconds to end a lease early. Without this, another fan-out waits until the lease expires."""

_SHUT_SECONDS: Final = 1
"""Seconds without a page for a channel whose messages no queue takes."""

_SHORTEST_IDLE: Final = 0.01
"""Seconds to wait at least: another fan-out may take the turn, and we must not ask in a tight loop."""


class Pages(Protocol):
    """The pages of all deliveries: `worker.db.pages.Pages`, which says what the arguments mean."""

    async def lease(self, turn: Turn, *, limit: int, seconds: float, owner: str) -> list[Page]:
        """Leases one open page of each running delivery, first of those whose turn it is."""

    async def lease_paced(
        self, *, limit: int, seconds: float, owner: str, channels: Sequence[str]
    ) -> list[Page]:
        """Leases one open page of each delivery whose throughput limit allows it now."""

    async def seconds_to_next_turn(self) -> float | None:
        """Returns the seconds until a delivery with a limit may publish again; None if none waits."""

    async def read_sends(self, page: Page) -> Sequence[tuple[int, int, str]]:
        """Reads the recipient, the attempt and the body of each send message of a page."""

    async def published(self, page: Page, owner: str, look_after: float) -> bool:
        """Marks a page whose messages are all confirmed as published; returns False if the lease was lost."""

    async def release(self, page: Page, owner: str) -> None:
        """Ends a lease."""


class Routes(Protocol):
    """Keeps the queues there: `worker.amqp.routes.Routes`."""

    def report(self, error: Unroutable) -> None:
        """Takes the error of a message that no queue took."""


class Waking(Protocol):
    """Wakes when a confirmation made new pages: `worker.db.listen.Wakener`."""

    def listening(self) -> AbstractAsyncContextManager[None]:
        """Listens while the block runs."""

    async def wait(self, stop: asyncio.Event, seconds: float) -> None:
        """Returns when there are new pages, `stop` was set, or the seconds are over."""


@dataclass(frozen=True, slots=True)
class FanoutParts:
    """The parts of the service."""

    publisher: Publisher
    """Publishes the send messages."""
    routes: Routes
    """Is told of messages that no queue takes."""
    depth: Depth
    """Says how many messages the send queues hold."""
    wakener: Waking
    """Ends the wait between two looks for pages early."""
    retrying: Retrying
    """Executes transactions."""
    pages: Pages
    """The pages that are leased here."""
    names: Names
    """The installation's names."""
    metrics: Metrics
    """The metrics."""


@dataclass(frozen=True, slots=True)
class FanoutLimits:
    """The limits of the service."""

    channels: Sequence[str]
    """The sending channels."""
    owner: str
    """The name of this process in its leases."""
    lease: float
    """Seconds of a lease."""
    look_after: float
    """Seconds after which the scheduler inspects a published page."""
    high_water: int
    """Messages in a send queue above which its channel's deliveries wait."""
    ahead: float
    """Seconds of work in a send queue above which they wait too; 0 for the number alone."""
    page_size: int
    """Recipients in most pages."""
    small: int
    """Recipients of a delivery that goes before larger ones; 0 for none."""
    shards: int
    """In how many queues a channel's send queue is split."""
    idle: float
    """Seconds between two looks for pages without a notification."""


class FanoutService:
    """Leases pages and publishes them."""

    name = "fanout"

    def __init__(self, parts: FanoutParts, limits: FanoutLimits) -> None:
        """Takes its parts and its limits."""
        self._parts = parts
        self._limits = limits
        self._last = 0
        self._looked = -math.inf
        self._headway = {c: Headway(limits.high_water, limits.ahead) for c in limits.channels}
        self._reached: list[str] = []
        self._shut: dict[str, float] = {}
        """Until when nothing is published to a channel, since no queue took its messages."""

    async def run(self, stop: asyncio.Event) -> None:
        """Publishes pages until `stop`; it finishes the leased pages first."""
        publishing: set[asyncio.Task[None]] = set()
        async with self._parts.wakener.listening(), asyncio.TaskGroup() as group:
            while not stop.is_set():
                await self._look()
                leased, more = await self._take(len(publishing))
                publishing |= {group.create_task(self._carry(page, self._note(page))) for page in leased}
                if not publishing:
                    await self._parts.wakener.wait(stop, await self._idle_for())
                elif not more:
                    publishing = await self._go_on(publishing, stop)

    async def _go_on(
        self, publishing: set[asyncio.Task[None]], stop: asyncio.Event
    ) -> set[asyncio.Task[None]]:
        """Waits until a page is published, there are new ones, or it is time for a look; returns the rest."""
        async with beside(self._parts.wakener.wait(stop, _LOOK_EVERY), "woken") as woken:
            await asyncio.wait([*publishing, woken], return_when=asyncio.FIRST_COMPLETED)
        return {task for task in publishing if not task.done()}

    def _note(self, page: Page) -> int | None:
        """Notes a page that is published from now on; returns the priority of its messages."""
        headway = self._headway[page.channel]
        first = page.recipients <= self._limits.small and headway.small_first
        headway.leased(page.size, small=first)
        return _PRIORITY if first else None

    async def _carry(self, page: Page, priority: int | None) -> None:
        confirmed = 0
        try:
            confirmed = await self.handle(page, priority)
        finally:
            self._headway[page.channel].published(page.size, confirmed)

    async def handle(self, page: Page, priority: int | None = None) -> int:
        """Publishes a leased page. If that fails for now, the lease is ended or expires.

        Args:
            page: The page.
            priority: The priority of its messages, or None.

        Returns:
            How many messages the broker has.

        Raises:
            Broken, Stopped, MessageRefused: as the database and the publisher raise them.
        """
        try:
            return await self._publish(page, priority)
        except Unroutable as error:
            # The page is kept where it is, so that it does not hold up the pages of other channels.
            log.warning(
                "page not published", delivery_id=page.delivery_id, page=page.page, because=str(error)
            )
            self._parts.routes.report(error)
            self._shut[page.channel] = asyncio.get_running_loop().time() + _SHUT_SECONDS
            self._looked = -math.inf
            await self._release(page)
        except Busy:
            await self._release(page)
        except (asyncio.CancelledError, Stopped):
            await self._release(page)
            raise
        return 0

    async def _take(self, publishing: int) -> tuple[list[Page], bool]:
        """Leases pages beside so many; returns them, and whether there may be more to lease at once."""
        open_, narrow = self._channels(small=False), self._channels(small=True)
        free = _PAGES_AT_ONCE - publishing
        if free <= 0:
            open_, free = [], free + _SMALL_AT_ONCE
        if free <= 0 or not (open_ or narrow):
            return [], False
        # No further ahead than there is room for: of a page more than that there may be a part.
        room = min((self._headway[channel].room for channel in open_), default=free * self._limits.page_size)
        free = max(min(free, room // self._limits.page_size), 1)
        parts, owner, seconds = self._parts, self._limits.owner, self._limits.lease
        leasing_paced = partial(
            parts.pages.lease_paced, limit=free, seconds=seconds, owner=owner, channels=open_
        )
        turn = Turn(self._last, open_, narrow, self._limits.small)
        leasing = partial(parts.pages.lease, turn, seconds=seconds, owner=owner)
        paced: list[Page] = []
        plain: list[Page] = []
        with contextlib.suppress(Busy):  # publish the leased pages; the others are leased next time
            if open_:
                paced = await parts.retrying.until_done(
                    Idempotent(leasing_paced), "leasing pages with a limit"
                )
            if len(paced) == free:
                return paced, True
            plain = await parts.retrying.until_done(
                Idempotent(partial(leasing, limit=free - len(paced))), "leasing pages"
            )
        if plain:
            self._last = plain[-1].delivery_id
        return [*paced, *plain], len(paced) + len(plain) == free

    def _channels(self, *, small: bool) -> list[str]:
        """Returns our channels whose send queue has room, or where small deliveries go past the mark."""
        headways = [(channel, self._headway[channel]) for channel in self._reached]
        if small:
            return [channel for channel, headway in headways if self._limits.small and headway.small_first]
        return [channel for channel, headway in headways if headway.room]

    async def _idle_for(self) -> float:
        idle = self._limits.idle
        if len(self._channels(small=False)) < len(self._limits.channels):
            return _LOOK_EVERY  # a full queue may be empty long before the next look for pages
        try:
            asking = Idempotent(self._parts.pages.seconds_to_next_turn)
            turn = await self._parts.retrying.until_done(asking, "reading the next turn")
        except Busy:
            return idle
        return idle if turn is None else min(idle, max(turn, _SHORTEST_IDLE))

    async def _release(self, page: Page) -> None:
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._parts.pages.release(page, self._limits.owner)
        except ERRORS as error:  # the lease expires by itself too
            log.debug(
                "lease not given back", delivery_id=page.delivery_id, page=page.page, because=str(error)
            )

    async def _publish(self, page: Page, priority: int | None) -> int:
        parts, limits = self._parts, self._limits
        crash_point("page.leased")
        reading = Idempotent(lambda: parts.pages.read_sends(page))
        sends = await parts.retrying.until_done(reading, "reading a page")
        messages = [
            Outgoing(
                body.encode(),
                routing.TYPE_SEND,
                message_id(page.delivery_id, recipient, attempt),
                priority=priority,
            )
            for recipient, attempt, body in sends
        ]
        # Pages go to the shards in turn, and those of small deliveries, which have one page, not all to one.
        keys = routing.sharded(page.channel, limits.shards)
        key = keys[(page.delivery_id + page.page) % len(keys)]
        await parts.publisher.publish(parts.names.exchange(routing.SENDS), key, messages)
        crash_point("page.confirmed")
        checkpoint = Idempotent(lambda: parts.pages.published(page, limits.owner, limits.look_after))
        await parts.retrying.until_done(checkpoint, "checkpointing a page")
        crash_point("page.published")
        parts.metrics.pages_published.inc()
        parts.metrics.sends_published.labels(page.channel).inc(len(messages))
        log.debug("page published", delivery_id=page.delivery_id, page=page.page, messages=len(messages))
        return len(messages)

    async def _look(self) -> None:
        """Looks how many messages wait in our send queues, as far as the broker says."""
        now = asyncio.get_running_loop().time()
        if now - self._looked < _LOOK_EVERY:
            return
        self._reached = [c for c in self._limits.channels if self._shut.get(c, 0) <= now]
        for channel in self._reached:
            waiting = await self._parts.depth.ready(self._parts.names.queue(routing.send_queue(channel)))
            self._parts.metrics.send_queue.labels(channel).set(math.nan if waiting is None else waiting)
            self._headway[channel].looked(waiting, now)
        self._looked = now
