"""Alerts: a view finds them by the thresholds of a table, and the outbox publishes each once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from contracts.events import Criterion, Event
from worker.crashing import crash_point

if TYPE_CHECKING:
    from worker.db.pool import Database


@dataclass(frozen=True, slots=True)
class Raised:
    """An alert that was put into the outbox."""

    delivery_id: int
    criterion: Criterion
    sentence: str


class Alerts:
    """The alerts of all deliveries, and the criteria that raise them."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def sample(self) -> None:
        """Stores the progress of each running delivery, once a minute, and deletes old samples."""
        await self._db.fetch("sample_progress")
        crash_point("alerts.sampled")
        await self._db.fetch("forget_samples")

    async def raise_due(self) -> list[Raised]:
        """Raises alerts that were not raised within 24 hours. If several processes do so, one raises each.

        Returns:
            The alerts that this call raised.
        """
        raised = []
        for due in await self._db.fetch("read_due_alerts"):
            async with self._db.transaction() as tx:
                await tx.execute("lock_delivery", delivery_id=due["delivery_id"])
                row = await tx.fetchrow(
                    "raise_alert",
                    delivery_id=due["delivery_id"],
                    criterion=due["criterion"],
                    event=Event.ALERT.value,
                )
            crash_point("alerts.raised")
            if row is not None:
                raised.append(Raised(row["delivery_id"], Criterion(row["criterion"]), row["sentence"]))
        return raised

    async def current(self) -> list[dict[str, Any]]:
        """Reads the current alerts, the oldest first."""
        return [dict(row) for row in await self._db.fetch("read_alerts")]

    async def thresholds(self) -> list[dict[str, Any]]:
        """Reads every criterion with its limit, its unit and its minimum of recipients."""
        return [dict(row) for row in await self._db.fetch("read_thresholds")]

    async def set_threshold(
        self, criterion: Criterion, threshold: float | None, minimum: int | None, *, enabled: bool | None
    ) -> dict[str, Any]:
        """Changes a criterion and returns its new row; None keeps a value.

        Raises:
            asyncpg.CheckViolationError: the criterion has no limit, or the limit is more than 100 percent.
        """
        row = await self._db.fetchrow(
            "set_threshold", criterion=criterion.value, threshold=threshold, minimum=minimum, enabled=enabled
        )
        if row is None:
            raise LookupError(f"The criterion {criterion} is not in the table.")
        return dict(row)
