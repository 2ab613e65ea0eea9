"""The KPIs of one delivery, recounted in one snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from worker.db import deliveries

if TYPE_CHECKING:
    from datetime import datetime

    from worker.db.pool import Database

COUNTED: Final = (
    "sending",
    "sent",
    "bounced_hard",
    "bounced_soft",
    "bounced_ignored",
    "errors",
    "unknown",
    "excluded_late",
    "cancelled",
    "retrying",
)
"""The counters that are recounted from the outcomes."""


@dataclass(frozen=True, slots=True)
class Recount:
    """What one snapshot showed.

    Attributes:
        deployment: The row of the view `deployment`.
        excluded_by_cause: What the preparation left out.
        as_of: The moment of the snapshot.
        drift: By counter, the recounted number less the counter's, where they differ.
    """

    deployment: dict[str, Any]
    excluded_by_cause: dict[str, int]
    as_of: datetime
    drift: dict[str, int]


async def recount(db: Database, delivery_id: int, shard: int) -> Recount | None:
    """Recounts a delivery and repairs its counters; None where there is no such delivery."""
    async with db.session() as session:
        await session.execute("lock_stats", delivery_id)
        try:
            async with session.connection.transaction(isolation="repeatable_read", readonly=True):
                deployment = await session.fetchrow("read_deployment", delivery_id)
                counted = await session.fetchrow("recount", delivery_id)
                if deployment is None or counted is None:
                    return None
                causes = await deliveries.excluded_by_cause(session, delivery_id)
            drift = {k: counted[k] - deployment[k] for k in COUNTED}
            if any(drift.values()):
                await session.execute("repair_counters", delivery_id, shard, *(drift[k] for k in COUNTED))
        finally:
            await session.execute("unlock_stats", delivery_id)
    return Recount(dict(deployment), causes, counted["as_of"], {k: v for k, v in drift.items() if v})
