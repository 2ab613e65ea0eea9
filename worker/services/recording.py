"""What recording results and recording tracking events share: batches in, whom they speak of, one bad row."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

import asyncpg

from worker.db import outcomes
from worker.db.outage import outlast
from worker.lifecycle import on_stop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from worker.amqp.messages import Consumer, Incoming
    from worker.db.pool import Database

T = TypeVar("T")

ROWS_AT_ONCE: Final = 2_000
"""Rows in one statement; 500 a statement cost 10 % more each, 5,000 gain nothing."""

_LEFT: Final = "the delivery has left by retention"

_PART_BYTES: Final = 250_000
"""After how many bytes a part of a batch is full: with the shortest results, 2,000 of them."""
_PARTS_AT_ONCE: Final = 2
"""One is decoded while the database writes the other."""

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
    """Records batches until `stop`; each part of one is acknowledged once it is recorded.

    Args:
        consumer: Of the queue.
        record: Records messages, beside others that it is given at the same time; what it returned from is
            committed, or in the dead queue.
        stop: Ends it.
        size: The most messages of a batch.
        age: How old a batch may become, in seconds.
    """

    async def take(part: list[Incoming]) -> None:
        await record(part)
        consumer.settle(part)

    await consumer.start()
    async with on_stop(stop, consumer.stop):
        while batch := await consumer.batch(size, age):
            recording: set[asyncio.Task[None]] = set()
            async with asyncio.TaskGroup() as group:
                for part in _parts(batch):
                    if len(recording) == _PARTS_AT_ONCE:
                        _, recording = await asyncio.wait(recording, return_when=asyncio.FIRST_COMPLETED)
                    recording.add(group.create_task(take(part)))
    await consumer.close()


def _parts(batch: list[Incoming]) -> Iterator[list[Incoming]]:
    """Cuts a batch by its bytes, as a message may hold one result or a thousand."""
    part: list[Incoming] = []
    size = 0
    for message in batch:
        part.append(message)
        size += len(message.body)
        if size >= _PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


async def write_by_halves(
    rows: Sequence[T],
    write: Callable[[Sequence[T]], Awaitable[int]],
    bury: Callable[[Sequence[T], str], Awaitable[None]],
    doing: str,
) -> int:
    """Writes rows; one that the database will not take must not hold up the others: halves until it is alone.

    Args:
        rows: Of one delivery, in the order of their keys.
        write: Writes rows in one transaction, idempotent, and returns a count.
        bury: Keeps rows that cannot be stored, with the database's reason.
        doing: What is being done, for the log.

    Returns:
        The sum of the counts.
    """
    try:
        return await outlast(lambda: write(rows), doing)
    except (asyncpg.PostgresError, ValueError) as error:
        # An outage and a collision are waited for; what comes here is about the rows.
        left = _finds_no_partition(error)  # as all of a delivery do, or none
        if left or len(rows) == 1:
            await bury(rows, _LEFT if left else str(error))
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
