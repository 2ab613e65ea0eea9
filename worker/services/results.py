"""Recording: results are gathered by size and age, folded by recipient, and written with their counters.

A batch is acknowledged after its commit. It may come again: facts are set once, so nothing counts twice.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import structlog

from contracts import results
from worker.db import breaker, deliveries, outcomes
from worker.db.outage import outlast
from worker.db.pool import COLLIDED, OUT_OF_REACH
from worker.domain.outcomes import fold
from worker.lifecycle import on_stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.amqp.messages import Consumer, Incoming
    from worker.db.pool import Database
    from worker.domain.breaker import Limits
    from worker.domain.outcomes import Facts
    from worker.domain.retry import Retries
    from worker.services.dead import DeadQueue
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_ROWS_AT_ONCE: Final = 2_000
"""Facts in one statement; 500 a statement cost 10 % more each, 5,000 gain nothing."""


class ResultsService:
    """Consumes the queues of results, each in a loop of its own."""

    name = "results"

    def __init__(
        self,
        consumers: Sequence[Consumer],
        dead: DeadQueue,
        db: Database,
        metrics: Metrics,
        *,
        batch: int,
        age: float,
        limits: Limits,
        retries: Retries,
        shard: int,
    ) -> None:
        """Takes its parts.

        Args:
            consumers: Of the queues of results.
            dead: For what cannot be recorded.
            db: The database.
            metrics: Where to count.
            batch: The most messages of a batch.
            age: How old a batch may become, in seconds.
            limits: When a delivery is paused that has no limits of its own.
            retries: When recipients are tried again.
            shard: The counter row to move.
        """
        self._consumers = consumers
        self._dead = dead
        self._db = db
        self._metrics = metrics
        self._batch = batch
        self._age = age
        self._limits = limits
        self._retries = retries
        self._shard = shard
        self._audience: dict[int, int] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Records results until `stop`."""
        async with asyncio.TaskGroup() as group:
            for consumer in self._consumers:
                group.create_task(self._consume(consumer, stop))

    async def _consume(self, consumer: Consumer, stop: asyncio.Event) -> None:
        await consumer.start()
        async with on_stop(stop, consumer.stop):
            while batch := await consumer.batch(self._batch, self._age):
                await self._record(batch)
                consumer.settle(batch)
        await consumer.close()

    async def _record(self, batch: list[Incoming]) -> None:
        sources: dict[tuple[int, int], Incoming] = {}
        decoded: list[Any] = []
        for message in batch:
            content = results.decode(message.routing_key, message.body)
            for body, reason in content.rejected:
                await self._dead.bury(message, f"The result could not be read: {reason}", body)
            decoded += content.results
            sources.update(((r.delivery_id, r.recipient), message) for r in content.results)
        folded = fold(decoded)
        by_delivery: dict[int, dict[int, Facts]] = {}
        for (delivery_id, recipient), known in folded.items():
            by_delivery.setdefault(delivery_id, {})[recipient] = known
        for delivery_id, facts in sorted(by_delivery.items()):
            size = await self._audience_size(delivery_id)
            for recipient in [r for r in facts if r > size]:
                del facts[recipient]
                await self._bury(sources[delivery_id, recipient], delivery_id, recipient, _nobody(size))
            await self._record_delivery(delivery_id, facts, sources)

    async def _record_delivery(
        self, delivery_id: int, facts: dict[int, Facts], sources: dict[tuple[int, int], Incoming]
    ) -> None:
        moved = 0
        order = sorted(facts)
        for start in range(0, len(order), _ROWS_AT_ONCE):
            rows = {r: facts[r] for r in order[start : start + _ROWS_AT_ONCE]}
            moved += await self._write(delivery_id, rows, sources)
        if moved:
            await outlast(lambda: self._look(delivery_id), "looking how far a delivery is")
        log.debug("results recorded", delivery_id=delivery_id, results=len(facts), moved=moved)

    async def _look(self, delivery_id: int) -> None:
        """Finishes a delivery that is done, and pauses one in which too much goes wrong."""
        seen = await breaker.progress(self._db, delivery_id, self._limits)
        if seen.complete:
            await deliveries.finish(self._db, delivery_id)
        elif seen.verdict is not None:
            tripped = await breaker.trip(self._db, delivery_id, self._limits)
            if tripped is not None:
                self._metrics.breaker_trips.inc()
                log.warning("delivery paused", delivery_id=delivery_id, because=tripped.reason)

    async def _write(
        self, delivery_id: int, facts: dict[int, Facts], sources: dict[tuple[int, int], Incoming]
    ) -> int:
        try:
            with self._metrics.record_seconds.time():
                moved = await outlast(
                    lambda: outcomes.record(self._db, delivery_id, facts, self._retries, self._shard),
                    "recording results",
                )
        except (*COLLIDED, *OUT_OF_REACH):
            raise
        except (asyncpg.PostgresError, ValueError) as error:
            # One row that the database will not take must not hold up the others: halve until it is alone.
            if len(facts) == 1:
                (recipient,) = facts
                reason = f"The result cannot be stored: {error}"
                await self._bury(sources[delivery_id, recipient], delivery_id, recipient, reason)
                return 0
            order = sorted(facts)
            halves = order[: len(order) // 2], order[len(order) // 2 :]
            return sum([await self._write(delivery_id, {r: facts[r] for r in h}, sources) for h in halves])
        self._metrics.record_recipients.observe(len(facts))
        self._metrics.results_recorded.inc(len(facts))
        self._metrics.outcomes_moved.inc(moved)
        return moved

    async def _audience_size(self, delivery_id: int) -> int:
        """Returns how many recipients a confirmed delivery has; the number is fixed, so it is kept."""
        if delivery_id not in self._audience:
            size = await outlast(
                lambda: outcomes.audience_size(self._db, delivery_id), "reading an audience's size"
            )
            if not size:
                return 0
            if len(self._audience) >= 1_000:  # noqa: PLR2004 - bounds the memory, nothing else
                self._audience.clear()
            self._audience[delivery_id] = size
        return self._audience[delivery_id]

    async def _bury(self, message: Incoming, delivery_id: int, recipient: int, reason: str) -> None:
        bad = [
            r
            for r in results.decode(message.routing_key, message.body).results
            if (r.delivery_id, r.recipient) == (delivery_id, recipient)
        ]
        await self._dead.bury(message, reason, results.encode(bad))


def _nobody(size: int) -> str:
    if not size:
        return "The delivery does not exist, or was never confirmed."
    return f"The delivery has {size} recipients, and none of this number."
