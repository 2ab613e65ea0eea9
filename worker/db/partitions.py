"""The sets of partitions: one partition of each big table for one range of delivery ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from worker.db.pool import Database, Transaction


@dataclass(frozen=True, slots=True)
class Sets:
    """The state of the sets."""

    count: int
    first_id: int
    """The first delivery id of the newest set."""
    last_id: int
    opened_at: datetime
    ids_left: int
    """Deliveries that fit into the newest set; 0 or less if the next creation opens a new set."""
    missing: tuple[str, ...]
    """Partitions that are missing."""


async def open_if_due(tx: Transaction, period: timedelta) -> None:
    """Opens a set if the newest is older than `period` or full; call it before a delivery is created.

    From here until the transaction ends, other creations wait.
    """
    await tx.execute("open_partition_set", period=period)


async def look(db: Database) -> Sets | None:
    """Returns the state of the sets; None if there is none, so that nothing can be prepared."""
    newest = await db.fetchrow("read_newest_set")
    missing = await db.fetch("read_missing_partitions")
    return newest and Sets(
        newest["sets"],
        newest["first_id"],
        newest["last_id"],
        newest["opened_at"],
        newest["ids_left"],
        tuple(row["partition"] for row in missing),
    )
