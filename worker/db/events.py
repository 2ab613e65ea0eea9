"""The outbox of events."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from contracts.events import Alert, Criterion, DeliveryEvent, Event, Figures
from contracts.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from worker.db.pool import Database


class Outbox:
    """The events that are to be published. Each call is a transaction of its own."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def take(self, limit: int, lease: float) -> list[DeliveryEvent]:
        """Leases the oldest event of each delivery, unless another process has leased it.

        Args:
            limit: The most events.
            lease: Seconds for which no other process gets them. Without a `drop` they stay in the outbox.
        """
        return [
            DeliveryEvent(
                event_id=f"{r['delivery_id']}-{r['number']}",
                delivery_id=r["delivery_id"],
                number=r["number"],
                event=Event(r["event"]),
                state=State(r["state"]),
                at=r["at"],
                operator=r["operator"],
                reason=r["reason"],
                figures=r["figures"] and Figures.model_validate_json(r["figures"]),
                alert=r["criterion"] and _alert(r),
            )
            for r in await self._db.fetch("take_events", events=limit, lease=timedelta(seconds=lease))
        ]

    async def drop(self, events: Sequence[DeliveryEvent]) -> None:
        """Deletes published events from the outbox."""
        await self._db.fetch(
            "drop_events", delivery_ids=[e.delivery_id for e in events], numbers=[e.number for e in events]
        )

    async def release(self, events: Sequence[DeliveryEvent]) -> None:
        """Ends the leases of events that were not published."""
        await self._db.fetch(
            "release_events", delivery_ids=[e.delivery_id for e in events], numbers=[e.number for e in events]
        )


def _alert(row: asyncpg.Record) -> Alert:
    return Alert(
        criterion=Criterion(row["criterion"]),
        since=row["since"],
        value=row["value"],
        threshold=row["threshold"],
        unit=row["unit"],
    )
