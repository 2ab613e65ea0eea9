"""Reads what the tracker needs to know: the links of deliveries, and the variables of recipients."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from worker.domain.tracked_content import Link

if TYPE_CHECKING:
    from worker.db.pool import Database


class TrackedDelivery(NamedTuple):
    """A delivery, as far as its links go."""

    confirmed: bool
    """Whether it was confirmed: only then do its events count, and its links stay as they are."""
    links: tuple[Link, ...]


class LinkStore:
    """The links of all deliveries."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def delivery(self, delivery_id: int) -> TrackedDelivery | None:
        """Reads a delivery's links; None if there is no such delivery."""
        row = await self._db.fetchrow("read_tracked_delivery", delivery_id=delivery_id)
        if row is None:
            return None
        columns = (row["numbers"] or (), row["parts"] or (), row["targets"] or ())
        return TrackedDelivery(row["confirmed"], tuple(map(Link, *columns)))

    async def variables(self, delivery_id: int, recipient: int) -> dict[str, Any] | None:
        """Reads what a recipient's templates are filled in with, the variables of Sendoff among them.

        Returns:
            The values by name; None if there is no such recipient, or nothing is known of them any more.
        """
        row = await self._db.fetchrow("read_link_variables", delivery_id=delivery_id, recipient=recipient)
        if row is None:
            return None
        own = {"address": row["address"], "recipient": recipient, "delivery_id": delivery_id}
        return {**json.loads(row["variables"] or "{}"), **own}

    async def content(self, delivery_id: int) -> dict[str, Any] | None:
        """Reads a delivery's content; None if it was never prepared."""
        row = await self._db.fetchrow("read_content", delivery_id=delivery_id)
        return json.loads(row["content"]) if row else None
