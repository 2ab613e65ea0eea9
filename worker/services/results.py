"""Recording: gathers results by size and age, folds them by recipient, writes them and their counters.

A batch is acknowledged after its commit. It may be delivered again: facts are set once, so nothing counts
twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from contracts import results
from worker.amqp.batches import take_batches
from worker.amqp.dead import Letter
from worker.crashing import crash_point
from worker.db.audiences import why_absent
from worker.db.halves import ROWS_AT_ONCE, write_by_halves
from worker.db.retrying import Idempotent
from worker.domain.failures import Busy
from worker.domain.outcomes import fold

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from worker.amqp.dead import Burying
    from worker.amqp.messages import Consumer, Incoming
    from worker.db.breaker import Progress
    from worker.db.retrying import Retrying
    from worker.domain.breaker import BreakerLimits, Tripped
    from worker.domain.outcomes import Facts
    from worker.domain.retry import Retries
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_Read = tuple["Incoming", list[Any]]
"""A message, and the results that could be read of it."""


class Recorder(Protocol):
    """Records results: `worker.db.accounts.Accounts`."""

    async def record(self, delivery_id: int, folded: Mapping[int, Facts], retries: Retries) -> int:
        """Records facts by recipient; returns how many recipients changed their status."""


class Sizes(Protocol):
    """Knows the number of a delivery's recipients: `worker.db.audiences.Audiences`."""

    async def sizes(self, delivery_ids: Collection[int]) -> dict[int, int | Busy]:
        """Returns them by delivery: 0 for no such delivery, a Busy where it cannot be read now."""


class Breaker(Protocol):
    """Reads the progress of deliveries, and pauses them: `worker.db.breaker.Breaker`."""

    async def progress(self, delivery_id: int, defaults: BreakerLimits) -> Progress:
        """Reads the progress of a delivery, and whether it may go on."""

    async def trip(self, delivery_id: int, defaults: BreakerLimits) -> Tripped | None:
        """Pauses a delivery; returns why, or None if this call did not pause it."""


class Finisher(Protocol):
    """Finishes deliveries: `worker.db.deliveries.Deliveries`."""

    async def finish(self, delivery_id: int) -> bool:
        """Finishes a delivery whose recipients all have an outcome; returns whether this call did."""


@dataclass(frozen=True, slots=True)
class ResultsParts:
    """The parts of the service."""

    consumers: Sequence[Consumer]
    """Read the queues of results."""
    dead: Burying
    """Takes messages that cannot be recorded."""
    retrying: Retrying
    """Executes transactions."""
    recorder: Recorder
    """Writes outcomes with their counters."""
    sizes: Sizes
    """Says which numbers cannot be recipients."""
    breaker: Breaker
    """Pauses deliveries with too many bounces or errors."""
    finisher: Finisher
    """Finishes deliveries whose recipients all have an outcome."""
    metrics: Metrics
    """The metrics."""


@dataclass(frozen=True, slots=True)
class ResultsLimits:
    """The limits of the service."""

    batch: int
    """The most messages of a batch."""
    age: float
    """The greatest age of a batch, in seconds."""
    breaker: BreakerLimits
    """The breaker's limits for deliveries without limits of their own."""
    retries: Retries
    """The rules for retries."""


class ResultsService:
    """Consumes the queues of results, each in its own loop."""

    name = "results"

    def __init__(self, parts: ResultsParts, limits: ResultsLimits) -> None:
        """Takes its parts and its limits."""
        self._parts = parts
        self._limits = limits

    async def run(self, stop: asyncio.Event) -> None:
        """Records results until `stop`."""
        size, age = self._limits.batch, self._limits.age
        async with asyncio.TaskGroup() as group:
            for consumer in self._parts.consumers:
                group.create_task(take_batches(consumer, self.handle, stop, size=size, age=age))

    async def handle(self, batch: list[Incoming]) -> None:
        """Records the results of a batch of messages, and buries those that cannot be recorded.

        Args:
            batch: Messages of the queues of results. This method does not acknowledge them.

        Raises:
            Broken, Stopped: as `worker.db.retrying.Retrier.until_done`; some of the results may be recorded.
        """
        read: list[_Read] = []
        unread: list[Letter] = []
        for message in batch:
            content = results.decode(message.routing_key, message.body)
            unread += [
                Letter(message, f"The result could not be read: {reason}", body)
                for body, reason in content.rejected
            ]
            read.append((message, content.results))
        await self._parts.dead.bury(*unread)
        by_delivery: dict[int, dict[int, Facts]] = {}
        for (delivery_id, recipient), known in fold(r for _, found in read for r in found).items():
            by_delivery.setdefault(delivery_id, {})[recipient] = known
        sizes = await self._parts.sizes.sizes(by_delivery.keys())
        absent: dict[tuple[int, int], str] = {}
        for delivery_id, facts in by_delivery.items():
            size = sizes[delivery_id]
            last, why = (0, str(size)) if isinstance(size, Busy) else (size, why_absent(size))
            for recipient in [r for r in facts if r > last]:
                del facts[recipient]
                absent[delivery_id, recipient] = why
        await self._bury(read, absent)
        for delivery_id, facts in sorted(by_delivery.items()):
            if facts:
                await self._record_delivery(delivery_id, facts, read)

    async def _record_delivery(self, delivery_id: int, facts: dict[int, Facts], read: list[_Read]) -> None:
        async def write(recipients: Sequence[int]) -> int:
            return await self._write(delivery_id, {r: facts[r] for r in recipients})

        async def bury(recipients: Sequence[int], reason: str) -> None:
            sentence = f"The result cannot be stored: {reason}"
            await self._bury(read, {(delivery_id, r): sentence for r in recipients})

        moved = 0
        order = sorted(facts)
        for start in range(0, len(order), ROWS_AT_ONCE):
            rows = order[start : start + ROWS_AT_ONCE]
            moved += await write_by_halves(self._parts.retrying, rows, write, bury, "recording results")
            crash_point("outcome.recorded")
        if moved:
            looking = Idempotent(lambda: self._look(delivery_id))
            with contextlib.suppress(Busy):  # the next batch and the scheduler look again
                await self._parts.retrying.until_done(looking, "looking how far a delivery is")
        log.debug("results recorded", delivery_id=delivery_id, results=len(facts), moved=moved)

    async def _look(self, delivery_id: int) -> None:
        """Finishes a delivery that is done, and pauses one with too many bounces or errors."""
        parts, defaults = self._parts, self._limits.breaker
        seen = await parts.breaker.progress(delivery_id, defaults)
        if seen.verdict is not None:
            tripped = await parts.breaker.trip(delivery_id, defaults)
            if tripped is not None:
                crash_point("breaker.tripped")
                parts.metrics.breaker_trips.inc()
                log.warning("delivery paused", delivery_id=delivery_id, because=tripped.reason)
                return
        if seen.complete and await parts.finisher.finish(delivery_id):
            crash_point("outcome.finished")

    async def _write(self, delivery_id: int, facts: dict[int, Facts]) -> int:
        metrics = self._parts.metrics
        with metrics.record_seconds.time():
            moved = await self._parts.recorder.record(delivery_id, facts, self._limits.retries)
        sent = min((known.sent_at for known in facts.values() if known.sent_at), default=None)
        if sent is not None:
            metrics.record_lag.observe(max(0, time.time() - sent.timestamp()))
        metrics.record_recipients.observe(len(facts))
        metrics.results_recorded.inc(len(facts))
        metrics.outcomes_moved.inc(moved)
        return moved

    async def _bury(self, read: list[_Read], reasons: Mapping[tuple[int, int], str]) -> None:
        """Keeps all that a batch says of some recipients, each message with what it said itself.

        Args:
            read: The messages with their results.
            reasons: Why, by delivery and recipient.
        """
        letters: list[Letter] = []
        for message, found in read if reasons else ():
            bad: dict[str, list[Any]] = {}
            for one in found:
                reason = reasons.get((one.delivery_id, one.recipient))
                if reason is not None:
                    bad.setdefault(reason, []).append(one)
            letters += [Letter(message, reason, results.encode(part)) for reason, part in bad.items()]
        await self._parts.dead.bury(*letters)
