"""Makes tracking events safe before their requests are answered: with the broker, or on the disk.

Events that come while the last ones are being confirmed go out together. If the broker is away, blocks or is
slow, they go to the spool instead, and from there to the broker when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import structlog

from contracts import tracking as wire
from contracts.batch import MAX_ITEMS
from contracts.routing import OPEN
from contracts.tracking import TrackingKind
from worker.amqp.bulk.errors import ConnectionLost
from worker.amqp.errors import BrokerForbids
from worker.amqp.messages import MessageRefused, Outgoing, Unroutable
from worker.crashing import crash_point
from worker.domain.failures import Stopped
from worker.lifecycle import pause
from worker.web.tracker.spool import Kept, NotKept

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from contracts.tracking import TrackingEvent
    from worker.amqp.messages import Publisher
    from worker.telemetry.metrics import Metrics
    from worker.web.tracker.spool import Spool

log = structlog.get_logger(__name__)

_IN_FLIGHT: Final = 2
"""Publishes at once. While one is confirmed, the next gathers events: so a busy tracker publishes few, large
messages, and a calm one publishes at once."""
_KINDS: Final = frozenset(kind.value for kind in TrackingKind)
_REPLAY_SECONDS: Final = 1.0
"""How often the spool is looked at."""
_REPLAYED_AT_ONCE: Final = 200
"""Messages of the spool that are published together."""


class Outlet:
    """Takes events, and says when they are safe."""

    def __init__(
        self, publisher: Publisher, exchange: str, spool: Spool, metrics: Metrics, *, patience: float
    ) -> None:
        """Takes its parts.

        Args:
            publisher: Publishes the events.
            exchange: Their exchange, by its full name.
            spool: Keeps them while the broker is away.
            metrics: The metrics.
            patience: Seconds to wait for the broker's confirm. Then the events go to the spool too.
        """
        self.name = "tracker events"
        self._publisher = publisher
        self._exchange = exchange
        self._spool = spool
        self._patience = patience
        self._kept = {how: metrics.tracker_events.labels(how) for how in ("broker", "spool", "lost")}
        self._replayed = metrics.tracker_replayed
        metrics.tracker_spool.set_function(lambda: spool.size)
        self._waiting: list[tuple[TrackingEvent, asyncio.Future[bool]]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._flying: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.Task[bool]] = set()
        self._disk = asyncio.Lock()

    async def safe(self, event: TrackingEvent) -> bool:
        """Returns whether the event is safe: confirmed by the broker, or on the disk. If not, it is lost."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, answer))
        self._idle.clear()
        self._wake.set()
        return await answer

    @property
    def reachable(self) -> bool:
        """Whether the broker takes events now, in time."""
        publisher = self._publisher
        return publisher.connected and not publisher.blocked and len(self._late) < _IN_FLIGHT

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` and until every event that was taken is safe."""
        async with asyncio.TaskGroup() as group:
            pumping = group.create_task(self._pump(group))
            replaying = group.create_task(self._replay(stop))
            await stop.wait()
            await replaying
            await self._idle.wait()
            pumping.cancel()
            for task in self._late:
                task.cancel()
        self._spool.close()

    async def _pump(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting and len(self._flying) < _IN_FLIGHT:
                taken, self._waiting = self._waiting[:MAX_ITEMS], self._waiting[MAX_ITEMS:]
                task = group.create_task(self._keep(taken, group))
                self._flying.add(task)
                task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        self._wake.set()
        if not self._waiting and not self._flying:
            self._idle.set()

    async def _keep(
        self, taken: list[tuple[TrackingEvent, asyncio.Future[bool]]], group: asyncio.TaskGroup
    ) -> None:
        by_kind: dict[str, list[TrackingEvent]] = {}
        for event, _ in taken:
            by_kind.setdefault(event.kind.value, []).append(event)
        messages = [Kept(kind, wire.encode(events)) for kind, events in by_kind.items()]
        how = "broker" if await self._published(messages, group) else await self._spooled(messages)
        crash_point("tracker.confirmed" if how == "broker" else "tracker.spooled")
        self._kept[how].inc(len(taken))
        for _, answer in taken:
            if not answer.done():  # its client may have gone away
                answer.set_result(how != "lost")

    async def _published(self, messages: list[Kept], group: asyncio.TaskGroup) -> bool:
        """Publishes; returns whether the broker has confirmed in time."""
        if not self.reachable:
            return False
        task = group.create_task(self._publish(messages))
        await asyncio.wait([task], timeout=self._patience)
        if task.done():
            return not task.cancelled() and task.result()
        log.warning("the broker is slow: events go to the spool", seconds=self._patience)
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        return False

    async def _publish(self, messages: Iterable[Kept]) -> bool:
        by_kind: dict[str, list[Outgoing]] = {}
        for message in messages:
            # A line that a disk has spoilt goes to the dead queue, as any body that cannot be read.
            key = message.routing_key if message.routing_key in _KINDS else OPEN
            by_kind.setdefault(key, []).append(Outgoing(message.body, key))
        try:
            for kind, outgoing in by_kind.items():
                await self._publisher.publish(self._exchange, kind, outgoing)
        except (Unroutable, MessageRefused, BrokerForbids) as error:
            log.warning("the broker takes no tracking events", because=str(error))
            return False
        except (Stopped, ConnectionLost):
            return False
        return True

    async def _spooled(self, messages: list[Kept]) -> str:
        try:
            async with self._disk:
                await self._spool.append(messages)
        except NotKept as error:
            log.warning("tracking events are lost", because=str(error))
            return "lost"
        return "spool"

    async def _replay(self, stop: asyncio.Event) -> None:
        """Publishes what is in the spool, as often as the broker can be reached."""
        while not await pause(stop, _REPLAY_SECONDS):
            async with self._disk:
                files = await asyncio.to_thread(self._spool.look)
            if not files or not self.reachable:
                continue
            async with self._disk:
                self._spool.release()
            for path in files:
                if stop.is_set() or not self.reachable:
                    break
                await self._replay_file(path)

    async def _replay_file(self, path: Path) -> None:
        with contextlib.suppress(_Unpublished), self._spool.taken(path) as messages:
            for at in range(0, len(messages or ()), _REPLAYED_AT_ONCE):
                part = (messages or [])[at : at + _REPLAYED_AT_ONCE]
                if not await self._publish(part):
                    raise _Unpublished
                self._replayed.inc(len(part))
            if messages:
                crash_point("tracker.replayed")
                log.info("the spool's events are published", file=path.name, messages=len(messages))


class _Unpublished(Exception):
    """The file stays."""
