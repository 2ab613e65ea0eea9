"""Tracking: gathers opens, clicks, mirror-page views and opt-outs by size and age, and writes them.

A batch is acknowledged after its commit. It may be delivered again: an event counts once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from contracts import tracking as wire
from contracts.tracking import TrackingKind
from worker.amqp.batches import take_batches
from worker.amqp.dead import Letter
from worker.crashing import crash_point
from worker.db.audiences import why_absent
from worker.db.halves import write_by_halves
from worker.domain.failures import Busy
from worker.domain.machines import RulesInvalid, own_rules, read_rules
from worker.domain.tracking import fold, judge
from worker.settings import SettingsError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Iterable, Sequence

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

    async def sizes(self, delivery_ids: Collection[int]) -> dict[int, int | Busy]:
        """Returns them by delivery: 0 for no such delivery, a Busy where it cannot be read now."""


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
        unread: list[Letter] = []
        for message in batch:
            content = wire.decode(message.body)
            unread += [
                Letter(message, f"The tracking event could not be read: {reason}", body)
                for body, reason in content.rejected
            ]
            for event in content.results:
                sources.setdefault((event.delivery_id, event.event_id), message)
            events += content.results
        await self._parts.dead.bury(*unread)
        by_delivery = fold(events)
        sizes = await self._parts.sizes.sizes(by_delivery.keys())
        absent: list[tuple[TrackingEvent, str]] = []
        for delivery_id, by_id in by_delivery.items():
            size = sizes[delivery_id]
            last, why = (0, str(size)) if isinstance(size, Busy) else (size, why_absent(size))
            for event in [e for e in by_id.values() if e.recipient > last]:
                del by_id[event.event_id]
                absent.append((event, why))
        await self._bury(absent, sources)
        for delivery_id, by_id in sorted(by_delivery.items()):
            if by_id:
                tracked = [judge(event, self._parts.machines) for event in by_id.values()]
                await self._record_delivery(delivery_id, tracked, sources)

    async def _record_delivery(
        self, delivery_id: int, tracked: list[Tracked], sources: dict[tuple[int, str], Incoming]
    ) -> None:
        async def write(rows: Sequence[Tracked]) -> int:
            return await self._write(delivery_id, rows)

        async def bury(rows: Sequence[Tracked], reason: str) -> None:
            sentence = f"The tracking event cannot be stored: {reason}"
            await self._bury([(row.event, sentence) for row in rows], sources)

        new = await write_by_halves(self._parts.retrying, tracked, write, bury, "recording tracking events")
        crash_point("tracking.recorded")
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
        earliest = min(row.event.at for row in rows)
        metrics.tracking_lag.observe(max(0, time.time() - earliest.timestamp()))
        metrics.tracking_batch.observe(len(rows))
        metrics.tracking_recorded.labels("machine").inc(done.machines)
        metrics.tracking_recorded.labels("person").inc(done.events - done.machines)
        metrics.tracking_repeated.inc(len(rows) - done.events)
        metrics.optouts.inc(done.opted_out)
        return done.events

    async def _bury(
        self, events: Iterable[tuple[TrackingEvent, str]], sources: dict[tuple[int, str], Incoming]
    ) -> None:
        """Keeps events, each with its reason, by the message that they came with."""
        parts: dict[tuple[Incoming, str], list[TrackingEvent]] = {}
        for event, reason in events:
            parts.setdefault((sources[event.delivery_id, event.event_id], reason), []).append(event)
        letters = (Letter(message, reason, wire.encode(part)) for (message, reason), part in parts.items())
        await self._parts.dead.bury(*letters)
