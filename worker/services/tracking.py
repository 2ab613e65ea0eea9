"""Tracking: opens, clicks, mirror-page views and opt-outs are gathered by size and age, and written.

A batch is acknowledged after its commit. It may come again: an event counts once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from contracts import tracking as wire
from contracts.tracking import TrackingKind
from worker.amqp.batches import take_batches
from worker.db import tracking
from worker.db.audiences import Audiences, nobody
from worker.db.halves import write_by_halves
from worker.domain.failures import Busy
from worker.domain.machines import RulesInvalid, own_rules, read_rules
from worker.domain.tracking import fold, judge
from worker.settings import SettingsError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence

    from contracts.tracking import TrackingEvent
    from worker.amqp.dead import DeadQueue
    from worker.amqp.messages import Consumer, Incoming
    from worker.db.accounts import Accounts
    from worker.db.pool import Database
    from worker.domain.machines import Machines
    from worker.domain.tracking import Tracked
    from worker.settings import Settings
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


def open_machines(settings: Settings) -> Machines:
    """Returns the rules that tell machines from persons: the settings' file, or those that come along.

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


class TrackingService:
    """Consumes the queue of tracking events."""

    name = "tracking"

    def __init__(
        self,
        consumer: Consumer,
        dead: DeadQueue,
        db: Database,
        accounts: Accounts,
        metrics: Metrics,
        machines: Machines,
        *,
        batch: int,
        age: float,
    ) -> None:
        """Takes its parts.

        Args:
            consumer: Of the queue of tracking events.
            dead: For what cannot be recorded.
            db: The database.
            accounts: Tell how many recipients a delivery has.
            metrics: Where to count.
            machines: The rules that tell machines from persons.
            batch: The most messages of a batch.
            age: How old a batch may become, in seconds.
        """
        self._consumer = consumer
        self._dead = dead
        self._db = db
        self._metrics = metrics
        self._machines = machines
        self._batch = batch
        self._age = age
        self._audiences = Audiences(accounts, db)

    async def run(self, stop: asyncio.Event) -> None:
        """Records events until `stop`."""
        await take_batches(self._consumer, self._record, stop, size=self._batch, age=self._age)

    async def _record(self, batch: list[Incoming]) -> None:
        events: list[TrackingEvent] = []
        sources: dict[tuple[int, str], Incoming] = {}
        for message in batch:
            content = wire.decode(message.body)
            for body, reason in content.rejected:
                await self._dead.bury(message, f"The tracking event could not be read: {reason}", body)
            for event in content.results:
                sources.setdefault((event.delivery_id, event.event_id), message)
            events += content.results
        for delivery_id, by_id in sorted(fold(events).items()):
            try:
                size = await self._audiences.size(delivery_id)
            except Busy as busy:
                await self._bury(delivery_id, by_id.values(), sources, str(busy))
                continue
            strangers: list[TrackingEvent] = []
            tracked: list[Tracked] = []
            for event in by_id.values():
                if event.recipient > size:
                    strangers.append(event)
                else:
                    tracked.append(judge(event, self._machines))
            await self._bury(delivery_id, strangers, sources, nobody(size))
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

        new = await write_by_halves(self._db, tracked, write, bury, "recording tracking events")
        unheeded = {t.machine_rule for t in tracked if t.event.kind is TrackingKind.OPTOUT and not t.heeded}
        if unheeded:
            log.warning(
                "opt-outs by scanners not heeded", delivery_id=delivery_id, rules=sorted(map(str, unheeded))
            )
        log.debug("tracking events recorded", delivery_id=delivery_id, events=len(tracked), new=new)

    async def _write(self, delivery_id: int, rows: Sequence[Tracked]) -> int:
        with self._metrics.tracking_seconds.time():
            done = await tracking.record(self._db, delivery_id, rows, self._machines.version)
        self._metrics.tracking_batch.observe(len(rows))
        self._metrics.tracking_recorded.labels("machine").inc(done.machines)
        self._metrics.tracking_recorded.labels("person").inc(done.events - done.machines)
        self._metrics.tracking_repeated.inc(len(rows) - done.events)
        self._metrics.optouts.inc(done.opted_out)
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
            await self._dead.bury(message, reason, wire.encode(bad))
