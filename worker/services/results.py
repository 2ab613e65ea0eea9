"""Recording: results are gathered by size and age, folded by recipient, and written with their counters.

A batch is acknowledged after its commit. It may come again: facts are set once, so nothing counts twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from contracts import results
from worker.amqp.batches import take_batches
from worker.db.audiences import why_absent
from worker.db.halves import ROWS_AT_ONCE, write_by_halves
from worker.db.retrying import Idempotent
from worker.domain.failures import Busy
from worker.domain.outcomes import fold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from worker.amqp.dead import Burying
    from worker.amqp.messages import Consumer, Incoming
    from worker.db.breaker import Progress
    from worker.db.retrying import Retrying
    from worker.domain.breaker import BreakerLimits, Tripped
    from worker.domain.outcomes import Facts
    from worker.domain.retry import Retries
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class Recorder(Protocol):
    """Where results are recorded: `worker.db.accounts.Accounts`."""

    async def record(self, delivery_id: int, folded: Mapping[int, Facts], retries: Retries) -> int:
        """Records facts by recipient; returns how many recipients changed their status."""


class Sizes(Protocol):
    """How many recipients deliveries have: `worker.db.audiences.Audiences`."""

    async def size(self, delivery_id: int) -> int:
        """Returns it, 0 for no such delivery; raises Busy."""


class Breaker(Protocol):
    """Looks how far deliveries are, and pauses them: `worker.db.breaker.Breaker`."""

    async def progress(self, delivery_id: int, defaults: BreakerLimits) -> Progress:
        """Reads how far a delivery is, and whether it may go on."""

    async def trip(self, delivery_id: int, defaults: BreakerLimits) -> Tripped | None:
        """Pauses a delivery; returns why, and None if it was not paused here."""


class Finisher(Protocol):
    """Finishes deliveries: `worker.db.deliveries.Deliveries`."""

    async def finish(self, delivery_id: int) -> bool:
        """Finishes a delivery in which nothing is open; returns whether it finished here."""


@dataclass(frozen=True, slots=True)
class ResultsParts:
    """What the service works with."""

    consumers: Sequence[Consumer]
    """Of the queues of results."""
    dead: Burying
    """For what cannot be recorded."""
    retrying: Retrying
    """Carries transactions out."""
    recorder: Recorder
    """Writes outcomes with their counters."""
    sizes: Sizes
    """Tells who cannot be a recipient."""
    breaker: Breaker
    """Pauses deliveries in which too much goes wrong."""
    finisher: Finisher
    """Finishes deliveries that are done."""
    metrics: Metrics
    """Where to count."""


@dataclass(frozen=True, slots=True)
class ResultsLimits:
    """The numbers that the service goes by."""

    batch: int
    """The most messages of a batch."""
    age: float
    """How old a batch may become, in seconds."""
    breaker: BreakerLimits
    """When a delivery is paused that has no limits of its own."""
    retries: Retries
    """When recipients are tried again."""


class ResultsService:
    """Consumes the queues of results, each in a loop of its own."""

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
        """Records what a batch of messages says, and buries what of it cannot be recorded.

        Args:
            batch: Messages of the queues of results; none is acknowledged here.

        Raises:
            Broken, Stopped: as `worker.db.retrying.Retrier.until_done`; a part may be recorded.
        """
        decoded: list[Any] = []
        for message in batch:
            content = results.decode(message.routing_key, message.body)
            for body, reason in content.rejected:
                await self._parts.dead.bury(message, f"The result could not be read: {reason}", body)
            decoded += content.results
        by_delivery: dict[int, dict[int, Facts]] = {}
        for (delivery_id, recipient), known in fold(decoded).items():
            by_delivery.setdefault(delivery_id, {})[recipient] = known
        for delivery_id, facts in sorted(by_delivery.items()):
            try:
                size = await self._parts.sizes.size(delivery_id)
            except Busy as busy:
                await self._bury(batch, delivery_id, facts.keys(), str(busy))
                continue
            absent = {r for r in facts if r > size}
            if absent:
                await self._bury(batch, delivery_id, absent, why_absent(size))
            for recipient in absent:
                del facts[recipient]
            await self._record_delivery(delivery_id, facts, batch)

    async def _record_delivery(
        self, delivery_id: int, facts: dict[int, Facts], batch: list[Incoming]
    ) -> None:
        async def write(recipients: Sequence[int]) -> int:
            return await self._write(delivery_id, {r: facts[r] for r in recipients})

        async def bury(recipients: Sequence[int], reason: str) -> None:
            await self._bury(batch, delivery_id, set(recipients), f"The result cannot be stored: {reason}")

        moved = 0
        order = sorted(facts)
        for start in range(0, len(order), ROWS_AT_ONCE):
            rows = order[start : start + ROWS_AT_ONCE]
            moved += await write_by_halves(self._parts.retrying, rows, write, bury, "recording results")
        if moved:
            looking = Idempotent(lambda: self._look(delivery_id))
            with contextlib.suppress(Busy):  # the next batch looks again, and so does the scheduler
                await self._parts.retrying.until_done(looking, "looking how far a delivery is")
        log.debug("results recorded", delivery_id=delivery_id, results=len(facts), moved=moved)

    async def _look(self, delivery_id: int) -> None:
        """Finishes a delivery that is done, and pauses one in which too much goes wrong."""
        parts, defaults = self._parts, self._limits.breaker
        seen = await parts.breaker.progress(delivery_id, defaults)
        if seen.complete:
            await parts.finisher.finish(delivery_id)
        elif seen.verdict is not None:
            tripped = await parts.breaker.trip(delivery_id, defaults)
            if tripped is not None:
                parts.metrics.breaker_trips.inc()
                log.warning("delivery paused", delivery_id=delivery_id, because=tripped.reason)

    async def _write(self, delivery_id: int, facts: dict[int, Facts]) -> int:
        metrics = self._parts.metrics
        with metrics.record_seconds.time():
            moved = await self._parts.recorder.record(delivery_id, facts, self._limits.retries)
        metrics.record_recipients.observe(len(facts))
        metrics.results_recorded.inc(len(facts))
        metrics.outcomes_moved.inc(moved)
        return moved

    async def _bury(
        self, batch: list[Incoming], delivery_id: int, recipients: AbstractSet[int], reason: str
    ) -> None:
        """Keeps all that a batch says of some recipients, each message with what it said itself."""
        for message in batch:
            bad = [
                r
                for r in results.decode(message.routing_key, message.body).results
                if r.delivery_id == delivery_id and r.recipient in recipients
            ]
            if bad:
                await self._parts.dead.bury(message, reason, results.encode(bad))
