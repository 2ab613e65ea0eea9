"""The outbox of events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts.events import DeliveryEvent, Event, Figures
from contracts.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.db.pool import Transaction


async def take(tx: Transaction, limit: int) -> list[DeliveryEvent]:
    """Takes the oldest event of each delivery that nobody else has in hand.

    Args:
        tx: Until its end nobody else gets them; without a `drop` they stay in the outbox.
        limit: The most events.
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
        )
        for r in await tx.fetch("take_events", limit)
    ]


async def drop(tx: Transaction, events: Sequence[DeliveryEvent]) -> None:
    """Takes events that were published out of the outbox."""
    await tx.execute("drop_events", [e.delivery_id for e in events], [e.number for e in events])
