"""What recording results and recording tracking events share: batches in, whom they speak of, one bad row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import asyncpg

from worker.db import outcomes
from worker.db.outage import outlast
from worker.lifecycle import on_stop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Sequence

    from worker.amqp.messages import Consumer, Incoming
    from worker.db.pool import Database

T = TypeVar("T")

ROWS_AT_ONCE: Final = 2_000
"""Rows in one statement; 500 a statement cost 10 % more each, 5,000 gain nothing."""

_LEFT: Final = "the delivery has left by retention"

_DELIVERIES_KEPT: Final = 1_000
"""Bounds the memory, nothing else."""


async def take_batches(
    consumer: Consumer,
    record: Callable[[list[Incoming]], Awaitable[None]],
    stop: asyncio.Event,
    *,
    size: int,
    age: float,
) -> None:
    """Records batches until `stop`; each is acknowledged once it is recorded.

    Args:
        consumer: Of the queue.
        record: Records a batch; what it returned from is committed, or in the dead queue.
        stop: Ends it.
        size: The most messages of a batch.
        age: How old a batch may become, in seconds.
    """
    await consumer.start()
    async with on_stop(stop, consumer.stop):
        while batch := await consumer.batch(size, age):
            await record(batch)
            consumer.settle(batch)
    await consumer.close()


async def write_by_halves(
    rows: Sequence[T],
    write: Callable[[Sequence[T]], Awaitable[int]],
    bury: Callable[[T, str], Awaitable[None]],
    doing: str,
) -> int:
    """Writes rows; one that the database will not take must not hold up the others: halves until it is alone.

    Args:
        rows: In the order of their keys.
        write: Writes rows in one transaction, idempotent, and returns a count.
        bury: Keeps a row that cannot be stored, with the database's reason.
        doing: What is being done, for the log.

    Returns:
        The sum of the counts.
    """
    try:
        return await outlast(lambda: write(rows), doing)
    except (asyncpg.PostgresError, ValueError) as error:
        # An outage and a collision are waited for; what comes here is about the rows.
        if len(rows) == 1:
            await bury(rows[0], _LEFT if _finds_no_partition(error) else str(error))
            return 0
    middle = len(rows) // 2
    return sum([await write_by_halves(half, write, bury, doing) for half in (rows[:middle], rows[middle:])])


def _finds_no_partition(error: Exception) -> bool:
    """Whether a row has no partition to go into; it is a violated check without a name."""
    return isinstance(error, asyncpg.CheckViolationError) and error.constraint_name is None


class Audiences:
    """How many recipients confirmed deliveries have; the number is fixed, so it is kept."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db
        self._sizes: dict[int, int] = {}

    async def size(self, delivery_id: int) -> int:
        """Returns it; 0 where there is no such delivery, it was never confirmed, or has left by retention."""
        if delivery_id not in self._sizes:
            size = await outlast(
                lambda: outcomes.audience_size(self._db, delivery_id), "reading an audience's size"
            )
            if not size:
                return 0
            if len(self._sizes) >= _DELIVERIES_KEPT:
                self._sizes.clear()
            self._sizes[delivery_id] = size
        return self._sizes[delivery_id]


def nobody(size: int) -> str:
    """Says why there is no such recipient in a delivery of a size."""
    if not size:
        return "The delivery does not exist, was never confirmed, or has left by retention."
    return f"The delivery has {size} recipients, and none of this number."
