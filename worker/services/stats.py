"""Compute stats: recounts the KPIs of a delivery in one snapshot, and answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from pydantic import ValidationError

from contracts import routing
from contracts.base import explain
from contracts.commands import ComputeStats, Reason, Reply, Status
from worker.amqp.consuming import consuming
from worker.amqp.dead import Letter
from worker.amqp.octets import storable
from worker.amqp.requests import reply_to
from worker.crashing import crash_point
from worker.db.retrying import Idempotent
from worker.db.stats import TookTooLong, answer
from worker.domain.deliveries import unknown_delivery
from worker.domain.failures import NO_MESSAGES_FAULT, Busy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from contracts.stats import Stats
    from worker.amqp.dead import Burying
    from worker.amqp.messages import Consumer, Incoming, Publisher
    from worker.db.retrying import Retrying
    from worker.db.stats import Recount
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 1_000
"""The most requests that are taken together: the consumer's prefetch."""


class Statistics(Protocol):
    """The KPIs of all deliveries: `worker.db.stats.Statistics`."""

    async def recount(self, delivery_id: int, *, deadline: float) -> Recount | None:
        """Recounts a delivery and repairs its counters; None if there is no such delivery.

        Raises:
            TookTooLong: it took more than `deadline` seconds.
        """

    async def live(self, delivery_id: int) -> Recount | None:
        """Reads the counters as they are; None if there is no such delivery."""


@dataclass(frozen=True, slots=True)
class StatsParts:
    """The parts of the service."""

    consumer: Consumer
    """Reads the queue of requests. Prefetched requests for the same delivery are answered together."""
    publisher: Publisher
    """Publishes the answers."""
    dead: Burying
    """Takes requests that cannot be answered."""
    statistics: Statistics
    """Counts deliveries."""
    retrying: Retrying
    """Executes transactions."""
    metrics: Metrics
    """The metrics."""


@dataclass(frozen=True, slots=True)
class StatsLimits:
    """The limits of the service."""

    deadline: float
    """Seconds for one recount. After that the live counters are the answer."""
    at_once: int
    """Deliveries that are recounted at the same time, each over one connection."""


class StatsService:
    """Consumes requests for statistics.

    Requests for the same delivery at the same time share one recount. Different deliveries are recounted at
    the same time. A request that comes during a recount waits for the next one: no answer is older than its
    request.
    """

    name = "stats"

    def __init__(self, parts: StatsParts, limits: StatsLimits) -> None:
        """Takes its parts and its limits."""
        self._parts = parts
        self._deadline = limits.deadline
        self._room = asyncio.Semaphore(limits.at_once)
        self._asking: dict[int, list[Incoming]] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Answers requests until `stop`."""
        consumer = self._parts.consumer
        async with consuming(consumer, stop), asyncio.TaskGroup() as group:
            while batch := await consumer.batch(_AT_ONCE):
                for message in batch:
                    self.handle(message, group)

    def handle(self, message: Incoming, group: asyncio.TaskGroup) -> None:
        """Starts the answer to a request, together with others for the same delivery.

        The task that answers a request acknowledges it too, because requests are not answered in their order.
        A request that cannot be answered goes to the dead queue first.

        Args:
            message: The request.
            group: Gets the task, unless a task for this delivery runs already.
        """
        try:
            number = ComputeStats.model_validate_json(message.body).delivery_id
        except ValidationError as error:
            group.create_task(self._acknowledge_after([message], self._refuse(message, error)))
            return
        if number in self._asking:
            self._asking[number].append(message)
        else:
            self._asking[number] = [message]
            group.create_task(self._serve(number))

    async def _serve(self, number: int) -> None:
        """Answers the requests for a delivery until there are no more."""
        while self._asking[number]:
            async with self._room:
                asking, self._asking[number] = self._asking[number], []
                await self._acknowledge_after(asking, self._answer(asking, number))
        del self._asking[number]

    async def _acknowledge_after(self, asking: list[Incoming], answering: Awaitable[None]) -> None:
        try:
            await answering
            crash_point("stats.answered")
        except NO_MESSAGES_FAULT:
            raise
        except Busy as busy:
            await self._parts.dead.bury(*(Letter(message, str(busy)) for message in asking))
        except Exception as error:
            # A fault of our code with one delivery must not end the service for all others.
            log.exception("request failed", routing_key=routing.COMPUTE_STATS, requests=len(asking))
            reason = f"It could not be handled: {error!r}"
            await self._parts.dead.bury(*(Letter(message, reason) for message in asking))
        self._parts.consumer.acknowledge(asking)

    async def _refuse(self, message: Incoming, error: ValidationError) -> None:
        sentence = f"The request could not be read: {explain(error)}"
        if message.reply_to:
            await self._reply(message, _refusal(message, Status.INVALID, Reason.MALFORMED, sentence))
        else:
            await self._parts.dead.bury(Letter(message, sentence))

    async def _answer(self, asking: list[Incoming], number: int) -> None:
        computed = await self._compute(number)
        if computed is None:
            unknown = unknown_delivery(number)
            refusals = (_refusal(m, Status.REFUSED, unknown.reason, unknown.message, number) for m in asking)
            await _all(map(self._reply, asking, refusals))
            return
        crash_point("stats.recounted")
        body = computed.model_dump_json().encode()
        self._parts.metrics.commands.labels(routing.COMPUTE_STATS, computed.status.value, "").inc(len(asking))
        told = [m for m in asking if m.reply_to]
        await _all(reply_to(self._parts.publisher, m, body, routing.TYPE_STATS) for m in told)

    async def _reply(self, message: Incoming, refusal: Reply) -> None:
        self._parts.metrics.commands.labels(routing.COMPUTE_STATS, refusal.status.value, refusal.reason).inc()
        if message.reply_to:
            body = refusal.model_dump_json().encode()
            await reply_to(self._parts.publisher, message, body, routing.TYPE_REPLY)

    async def _compute(self, number: int) -> Stats | None:
        statistics, until_done = self._parts.statistics, self._parts.retrying.until_done
        recounting = Idempotent(lambda: statistics.recount(number, deadline=self._deadline))
        try:
            found = await until_done(recounting, "computing stats")
        except (TookTooLong, Busy):
            log.warning("a recount took too long: the live counters are the answer", delivery_id=number)
            reading = Idempotent(lambda: statistics.live(number))
            found = await until_done(reading, "reading the live counters")
        if found is None:
            return None
        if found.drift:
            log.error("counters had drifted and were repaired", delivery_id=number, drift=found.drift)
            self._parts.metrics.stats_drift.inc(sum(abs(by) for by in found.drift.values()))
        return answer(found)


async def _all(answers: Iterable[Awaitable[None]]) -> None:
    """Waits for all of them, then raises the first error: no task is left running."""
    for died in await asyncio.gather(*answers, return_exceptions=True):
        if died is not None:
            raise died


def _refusal(
    message: Incoming, status: Status, reason: Reason, sentence: str, delivery_id: int | None = None
) -> Reply:
    return Reply(
        command_id=storable(message.message_id or ""),
        delivery_id=delivery_id,
        status=status,
        reason=reason,
        message=sentence,
    )
