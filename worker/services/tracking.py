"""Tracking: gathers opens, clicks, mirror-page views and opt-outs by size and age, and writes them.

A batch is acknowledged after its commit. It may be delivered again: an event counts once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from contracts import tracking as wire
from contracts.tracking import TrackingKind
from worker.amqp.batches import take_batches
from worker.db.audiences import why_absent
from worker.db.halves import write_by_halves
from worker.domain.failures import Busy
from worker.domain.machines import RulesInvalid, own_rules, read_rules
from worker.domain.tracking import fold, judge
from worker.settings import SettingsError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence

    from contracts.tracking import TrackingEvent
    from worker.amqp.dead import Burying
    from worker.amqp.messages import Consumer, Incoming
    from worker.db.retrying import Retrying
    from worker.db.tracking import TrackingChanges
    from worker.domain.machines import Machines
    from worker.domain.tracking import Tracked
    from worker.settings import Settings
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


def open_machines(settings: Settings) -> Machines:
    """Returns the rules that tell machines from persons: those of the settings' file, or Sendoff's own.

    Raises:
        SettingsError: The file cannot be read, or holds no rules.
    """
    path = settings.machine_rules_file
    if path is None:
        return own_rules()
    try:
        return read_rules(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(
            f"SENDOFF_MACHINE_RULES_FILE: {path} cannot be read: {error.strerror}."
        ) from error
    except (RulesInvalid, UnicodeDecodeError) as error:
        raise SettingsError(f"SENDOFF_MACHINE_RULES_FILE: {path} holds no rules: {error}") from error


class Recorder(Protocol):
    """Records tracking events: `worker.db.tracking.TrackingLog`."""

    async def record(self, delivery_id: int, tracked: Sequence[Tracked], rules: str) -> TrackingChanges:
        """Records events, each event_id once, classified by a version of the rules; returns the changes."""


class Sizes(Protocol):
    """Knows the number of a delivery's recipients: `worker.db.audiences.Audiences`."""

    async def size(self, delivery_id: int) -> int:
        """Returns the number; 0 if there is no such delivery. Raises Busy."""


@dataclass(frozen=True, slots=True)
class TrackingParts:
    """The parts of the service."""

    consumer: Consumer
    """Reads the queue of tracking events."""
    dead: Burying
    """Takes messages that cannot be recorded."""
    retrying: Retrying
    """Executes transactions."""
    recorder: Recorder
    """Writes events with their counters."""
    sizes: Sizes
    """Says which numbers cannot be recipients."""
    machines: Machines
    """The rules that tell machines from persons."""
    metrics: Metrics
    """The metrics."""


@dataclass(frozen=True, slots=True)
class TrackingLimits:
    """The limits of the service."""

    batch: int
    """The most messages of a batch."""
    age: float
    """The greatest age of a batch, in seconds."""


class TrackingService:
    """Consumes the queue of tracking events."""

    name = "tracking"

    def __init__(self, parts: TrackingParts, limits: TrackingLimits) -> None:
        """Takes its parts and its limits."""
        self._parts = parts
        self._limits = limits

    async def run(self, stop: asyncio.Event) -> None:
        """Records events until `stop`."""
        size, age = self._limits.batch, self._limits.age
        await take_batches(self._parts.consumer, self.handle, stop, size=size, age=age)

    async def handle(self, batch: list[Incoming]) -> None:
        """Records the events of a batch of messages, and buries those that cannot be recorded.

        Args:
            batch: Messages of the queue of tracking events. This method does not acknowledge them.

        Raises:
            Broken, Stopped: as `worker.db.retrying.Retrier.until_done`; some of the events may be recorded.
        """
        events: list[TrackingEvent] = []
        sources: dict[tuple[int, str], Incoming] = {}
        for message in batch:
            content = wire.decode(message.body)
            for body, reason in content.rejected:
                await self._parts.dead.bury(message, f"The tracking event could not be read: {reason}", body)
            for event in content.results:
                sources.setdefault((event.delivery_id, event.event_id), message)
            events += content.results
        for delivery_id, by_id in sorted(fold(events).items()):
            try:
                size = await self._parts.sizes.size(delivery_id)
            except Busy as busy:
                await self._bury(delivery_id, by_id.values(), sources, str(busy))
                continue
            absent: list[TrackingEvent] = []
            tracked: list[Tracked] = []
            for event in by_id.values():
                if event.recipient > size:
                    absent.append(event)
                else:
                    tracked.append(judge(event, self._parts.machines))
            await self._bury(delivery_id, absent, sources, why_absent(size))
            if tracked:
                await self._record_delivery(delivery_id, tracked, sources)

    async def _record_delivery(
        self, delivery_id: int, tracked: list[Tracked], sources: dict[tuple[int, str], Incoming]
    ) -> None:
        async def write(rows: Sequence[Tracked]) -> int:
            return await self._write(delivery_id, rows)

        async def bury(rows: Sequence[Tracked], reason: str) -> None:
            sentence = f"The tracking event cannot be stored: {reason}"
            await self._bury(delivery_id, [row.event for row in rows], sources, sentence)

        new = await write_by_halves(self._parts.retrying, tracked, write, bury, "recording tracking events")
        unheeded = {t.machine_rule for t in tracked if t.event.kind is TrackingKind.OPTOUT and not t.heeded}
        if unheeded:
            log.warning(
                "opt-outs by scanners not heeded", delivery_id=delivery_id, rules=sorted(map(str, unheeded))
            )
        log.debug("tracking events recorded", delivery_id=delivery_id, events=len(tracked), new=new)

    async def _write(self, delivery_id: int, rows: Sequence[Tracked]) -> int:
        metrics = self._parts.metrics
        with metrics.tracking_seconds.time():
            done = await self._parts.recorder.record(delivery_id, rows, self._parts.machines.version)
        metrics.tracking_batch.observe(len(rows))
        metrics.tracking_recorded.labels("machine").inc(done.machines)
        metrics.tracking_recorded.labels("person").inc(done.events - done.machines)
        metrics.tracking_repeated.inc(len(rows) - done.events)
        metrics.optouts.inc(done.opted_out)
        return done.events

    async def _bury(
        self,
        delivery_id: int,
        events: Iterable[TrackingEvent],
        sources: dict[tuple[int, str], Incoming],
        reason: str,
    ) -> None:
        by_message: dict[Incoming, list[TrackingEvent]] = {}
        for event in events:
            by_message.setdefault(sources[delivery_id, event.event_id], []).append(event)
        for message, bad in by_message.items():
            await self._parts.dead.bury(message, reason, wire.encode(bad))
