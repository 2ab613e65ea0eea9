"""Compute stats: the KPIs of a delivery, recounted in one snapshot and answered to whoever asked."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import structlog
from pydantic import ValidationError

from contracts import routing
from contracts.base import explain
from contracts.commands import ComputeStats, Reason, Reply, Status
from contracts.stats import Stats
from worker.amqp.consuming import consuming
from worker.amqp.requests import reply_to
from worker.db import stats
from worker.db.retrying import Idempotent
from worker.domain.deliveries import unknown_delivery
from worker.domain.failures import NO_MESSAGES_FAULT, Busy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from worker.amqp.dead import DeadQueue
    from worker.amqp.messages import Consumer, Incoming, Publisher
    from worker.db.pool import Database
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 1_000
"""Requests that are taken together: what the consumer prefetches."""


class StatsService:
    """Consumes requests for statistics.

    Who asks for the same delivery at the same time gets the same recount, and different deliveries are
    recounted side by side. Who asks while one is under way waits for the next: no answer is older than its
    question.
    """

    name = "stats"

    def __init__(
        self,
        consumer: Consumer,
        publisher: Publisher,
        dead: DeadQueue,
        db: Database,
        metrics: Metrics,
        *,
        deadline: float,
        at_once: int,
    ) -> None:
        """Takes its parts.

        Args:
            consumer: Of the queue of requests; what it prefetches is answered together where it can be.
            publisher: For the answers.
            dead: For what cannot be answered.
            db: The database.
            metrics: Where to count.
            deadline: Seconds for one recount; after them the live counters are the answer.
            at_once: Deliveries that are recounted side by side, each over a connection.
        """
        self._metrics = metrics
        self._consumer = consumer
        self._publisher = publisher
        self._dead = dead
        self._db = db
        self._deadline = deadline
        self._room = asyncio.Semaphore(at_once)
        self._asking: dict[int, list[Incoming]] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Answers requests until `stop`."""
        async with consuming(self._consumer, stop), asyncio.TaskGroup() as group:
            while batch := await self._consumer.batch(_AT_ONCE):
                for message in batch:
                    self._take(message, group)

    def _take(self, message: Incoming, group: asyncio.TaskGroup) -> None:
        try:
            number = ComputeStats.model_validate_json(message.body).delivery_id
        except ValidationError as error:
            group.create_task(self._settle([message], self._refuse(message, error)))
            return
        if number in self._asking:
            self._asking[number].append(message)
        else:
            self._asking[number] = [message]
            group.create_task(self._serve(number))

    async def _serve(self, number: int) -> None:
        """Answers whoever asks for a delivery, until nobody does."""
        while self._asking[number]:
            async with self._room:
                asking, self._asking[number] = self._asking[number], []
                await self._settle(asking, self._answer(asking, number))
        del self._asking[number]

    async def _settle(self, asking: list[Incoming], answering: Awaitable[None]) -> None:
        try:
            await answering
        except NO_MESSAGES_FAULT:
            raise
        except Busy as busy:
            for message in asking:
                await self._dead.bury(message, str(busy))
        except Exception as error:
            # A fault of ours with one delivery must not end the service for all others.
            log.exception("request failed", routing_key=routing.COMPUTE_STATS, requests=len(asking))
            for message in asking:
                await self._dead.bury(message, f"It could not be handled: {error!r}")
        self._consumer.settle(asking)

    async def _refuse(self, message: Incoming, error: ValidationError) -> None:
        sentence = f"The request could not be read: {explain(error)}"
        if message.reply_to:
            await self._reply(message, _refusal(message, Status.INVALID, Reason.MALFORMED, sentence))
        else:
            await self._dead.bury(message, sentence)

    async def _answer(self, asking: list[Incoming], number: int) -> None:
        answer = await self._compute(number)
        if answer is None:
            unknown = unknown_delivery(number)
            refusals = (_refusal(m, Status.REFUSED, unknown.reason, unknown.message, number) for m in asking)
            await _all(map(self._reply, asking, refusals))
            return
        body = answer.model_dump_json().encode()
        self._metrics.commands.labels(routing.COMPUTE_STATS, answer.status.value, "").inc(len(asking))
        told = [m for m in asking if m.reply_to]
        await _all(reply_to(self._publisher, m, body, routing.TYPE_STATS) for m in told)

    async def _reply(self, message: Incoming, refusal: Reply) -> None:
        self._metrics.commands.labels(routing.COMPUTE_STATS, refusal.status.value, refusal.reason).inc()
        if message.reply_to:
            body = refusal.model_dump_json().encode()
            await reply_to(self._publisher, message, body, routing.TYPE_REPLY)

    async def _compute(self, number: int) -> Stats | None:
        try:
            found = await self._db.until_done(
                Idempotent(lambda: stats.recount(self._db, number, deadline=self._deadline)),
                "computing stats",
            )
        except (stats.TookTooLong, Busy):
            log.warning("a recount took too long: the live counters are the answer", delivery_id=number)
            live = Idempotent(lambda: stats.live(self._db, number))
            found = await self._db.until_done(live, "reading the live counters")
        if found is None:
            return None
        if found.drift:
            log.error("counters had drifted and were repaired", delivery_id=number, drift=found.drift)
            self._metrics.stats_drift.inc(sum(abs(by) for by in found.drift.values()))
        row = found.deployment
        return Stats.model_validate(
            {
                **{k: _plain(row[k]) for k in Stats.model_fields.keys() & row.keys()},
                "preparation": row["preparation"] or None,
                "excluded_by_cause": found.excluded_by_cause,
                "as_of": found.as_of,
                "exact": found.exact,
                "drift": found.drift,
            }
        )


def _plain(value: object) -> object:
    # A percentage is a numeric of two decimals in the database.
    return float(value) if isinstance(value, Decimal) else value


async def _all(answers: Iterable[Awaitable[None]]) -> None:
    """Waits for all of them, and then raises what the first died of: none is left to run by itself."""
    for died in await asyncio.gather(*answers, return_exceptions=True):
        if died is not None:
            raise died


def _refusal(
    message: Incoming, status: Status, reason: Reason, sentence: str, delivery_id: int | None = None
) -> Reply:
    return Reply(
        command_id=message.message_id or "",
        delivery_id=delivery_id,
        status=status,
        reason=reason,
        message=sentence,
    )
