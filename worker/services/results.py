"""Recording: results are gathered by size and age, folded by recipient, and written with their counters.

A batch is acknowledged after its commit. It may come again: facts are set once, so nothing counts twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import structlog

from contracts import results
from worker.amqp.batches import take_batches
from worker.db import breaker, deliveries
from worker.db.audiences import Audiences, nobody
from worker.db.halves import ROWS_AT_ONCE, write_by_halves
from worker.db.retrying import Idempotent
from worker.domain.failures import Busy
from worker.domain.outcomes import fold

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from worker.amqp.dead import DeadQueue
    from worker.amqp.messages import Consumer, Incoming
    from worker.db.accounts import Accounts
    from worker.db.pool import Database
    from worker.domain.breaker import Limits
    from worker.domain.outcomes import Facts
    from worker.domain.retry import Retries
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class ResultsService:
    """Consumes the queues of results, each in a loop of its own."""

    name = "results"

    def __init__(
        self,
        consumers: Sequence[Consumer],
        dead: DeadQueue,
        db: Database,
        accounts: Accounts,
        metrics: Metrics,
        *,
        batch: int,
        age: float,
        limits: Limits,
        retries: Retries,
    ) -> None:
        """Takes its parts.

        Args:
            consumers: Of the queues of results.
            dead: For what cannot be recorded.
            db: The database.
            accounts: Where results are recorded.
            metrics: Where to count.
            batch: The most messages of a batch.
            age: How old a batch may become, in seconds.
            limits: When a delivery is paused that has no limits of its own.
            retries: When recipients are tried again.
        """
        self._consumers = consumers
        self._dead = dead
        self._db = db
        self._accounts = accounts
        self._metrics = metrics
        self._batch = batch
        self._age = age
        self._limits = limits
        self._retries = retries
        self._audiences = Audiences(accounts, db)

    async def run(self, stop: asyncio.Event) -> None:
        """Records results until `stop`."""
        async with asyncio.TaskGroup() as group:
            for consumer in self._consumers:
                taking = take_batches(consumer, self._record, stop, size=self._batch, age=self._age)
                group.create_task(taking)

    async def _record(self, batch: list[Incoming]) -> None:
        decoded: list[Any] = []
        for message in batch:
            content = results.decode(message.routing_key, message.body)
            for body, reason in content.rejected:
                await self._dead.bury(message, f"The result could not be read: {reason}", body)
            decoded += content.results
        by_delivery: dict[int, dict[int, Facts]] = {}
        for (delivery_id, recipient), known in fold(decoded).items():
            by_delivery.setdefault(delivery_id, {})[recipient] = known
        for delivery_id, facts in sorted(by_delivery.items()):
            try:
                size = await self._audiences.size(delivery_id)
            except Busy as busy:
                await self._bury(batch, delivery_id, facts.keys(), str(busy))
                continue
            strangers = {r for r in facts if r > size}
            if strangers:
                await self._bury(batch, delivery_id, strangers, nobody(size))
            for recipient in strangers:
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
            moved += await write_by_halves(self._db, rows, write, bury, "recording results")
        if moved:
            looking = Idempotent(lambda: self._look(delivery_id))
            with contextlib.suppress(Busy):  # the next batch looks again, and so does the scheduler
                await self._db.until_done(looking, "looking how far a delivery is")
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

    async def _write(self, delivery_id: int, facts: dict[int, Facts]) -> int:
        with self._metrics.record_seconds.time():
            moved = await self._accounts.record(delivery_id, facts, self._retries)
        self._metrics.record_recipients.observe(len(facts))
        self._metrics.results_recorded.inc(len(facts))
        self._metrics.outcomes_moved.inc(moved)
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
                await self._dead.bury(message, reason, results.encode(bad))
