"""Compute stats: the KPIs of a delivery, recounted in one snapshot and answered to whoever asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from contracts import routing
from contracts.base import explain
from contracts.commands import ComputeStats, Reason, Reply, Status
from contracts.stats import Stats
from worker.db import stats
from worker.db.outage import outlast
from worker.domain.confirm import unknown_delivery
from worker.domain.kpis import derive
from worker.services.requests import reply_to, take_each

if TYPE_CHECKING:
    import asyncio

    from worker.amqp.messages import Consumer, Incoming, Publisher
    from worker.db.pool import Database
    from worker.services.dead import DeadQueue
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class StatsService:
    """Consumes requests for statistics, one after the other."""

    name = "stats"

    def __init__(
        self,
        consumer: Consumer,
        publisher: Publisher,
        dead: DeadQueue,
        db: Database,
        metrics: Metrics,
        *,
        shard: int,
    ) -> None:
        """Takes its parts; `shard` is the counter row that a repair moves."""
        self._metrics = metrics
        self._consumer = consumer
        self._publisher = publisher
        self._dead = dead
        self._db = db
        self._shard = shard

    async def run(self, stop: asyncio.Event) -> None:
        """Answers requests until `stop`."""
        await take_each(self._consumer, self._dead, self._handle, stop)

    async def _handle(self, message: Incoming) -> None:
        try:
            request = ComputeStats.model_validate_json(message.body)
        except ValidationError as error:
            sentence = f"The request could not be read: {explain(error)}"
            if not message.reply_to:
                await self._dead.bury(message, sentence)
                return
            answer: Reply | Stats = _refusal(message, Status.INVALID, Reason.MALFORMED, sentence)
        else:
            answer = await self._compute(request, message)
        status, reason = (
            (Status.ACCEPTED, "") if isinstance(answer, Stats) else (answer.status, answer.reason or "")
        )
        self._metrics.commands.labels(message.routing_key, status.value, reason).inc()
        if message.reply_to:
            kind = routing.TYPE_STATS if isinstance(answer, Stats) else routing.TYPE_REPLY
            await reply_to(self._publisher, message, answer.model_dump_json().encode(), kind)

    async def _compute(self, request: ComputeStats, message: Incoming) -> Stats | Reply:
        number = request.delivery_id
        found = await outlast(lambda: stats.recount(self._db, number, self._shard), "computing stats")
        if found is None:
            unknown = unknown_delivery(number)
            return _refusal(message, Status.REFUSED, unknown.reason, unknown.message, number)
        if found.drift:
            log.error("counters had drifted and were repaired", delivery_id=number, drift=found.drift)
            self._metrics.stats_drift.inc(sum(abs(by) for by in found.drift.values()))
        row = found.deployment
        counts = {k: row[k] + found.drift.get(k, 0) for k in stats.COUNTED}
        unchanged = {
            k: row[k] for k in ("opened", "clicked", "optout", "mirror", "human_opened", "human_clicked")
        }
        return Stats.model_validate(
            {
                **{k: row[k] for k in Stats.model_fields.keys() & row.keys()},
                **counts,
                **derive({**counts, **unchanged}, row["to_deliver"]),
                "preparation": row["preparation"] or None,
                "excluded_by_cause": found.excluded_by_cause,
                "as_of": found.as_of,
                "exact": True,
                "drift": found.drift,
            }
        )


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
