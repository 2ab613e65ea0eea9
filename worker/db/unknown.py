"""Unknown outcomes, and how an operator settles them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.db import reading
from worker.domain.settlement import REASON

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from worker.db.pool import Database, Transaction
    from worker.domain.settlement import Settlement


async def batches(db: Database, delivery_id: int, size: int) -> AsyncIterator[list[int]]:
    """Yields the recipients whose outcome is unknown, by ranges of the audience; none for none."""
    recipients, _ = await reading.audience(db, delivery_id) or (0, None)
    for first in range(1, recipients + 1, size):
        rows = await db.fetch("read_unknown", delivery_id=delivery_id, first=first, last=first + size - 1)
        if rows:
            yield [row["recipient"] for row in rows]


async def settle(
    tx: Transaction, delivery_id: int, recipients: Sequence[int], how: Settlement, reply: str, shard: int
) -> int:
    """Settles those of some recipients whose outcome is unknown still, and moves the counters with them.

    Args:
        tx: The transaction, in which `outcomes.share_claims` was called.
        delivery_id: The delivery.
        recipients: Their numbers.
        how: What they become.
        reply: Who settled them, in words; kept where a channel's reply would be.
        shard: The counter row to move.

    Returns:
        How many it settled.
    """
    settled: int = await tx.fetchval(
        "settle_unknown",
        delivery_id=delivery_id,
        recipients=list(recipients),
        become=how.value,
        reason=REASON,
        reply=reply,
        shard=shard,
    )
    return settled
