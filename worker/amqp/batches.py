"""Takes batches of messages, records them in parts, and acknowledges each part."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from worker.amqp.consuming import consuming
from worker.crashing import crash_point

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from worker.amqp.messages import Consumer, Incoming

_PART_BYTES: Final = 250_000
"""Bytes of a full part of a batch: 2,000 results of the shortest kind."""
_PARTS_AT_ONCE: Final = 2
"""Parts that are recorded at the same time: we decode one while the database writes the other."""


async def take_batches(
    consumer: Consumer,
    record: Callable[[list[Incoming]], Awaitable[None]],
    stop: asyncio.Event,
    *,
    size: int,
    age: float,
) -> None:
    """Records batches until `stop`, and acknowledges each part of a batch after it is recorded.

    Args:
        consumer: The consumer of the queue.
        record: Records messages. It is called for several parts at the same time. When it returns, the
            messages are committed or in the dead queue.
        stop: Ends it.
        size: The most messages of a batch.
        age: How old a batch may become, in seconds.
    """

    async def take(part: list[Incoming]) -> None:
        await record(part)
        crash_point("batch.recorded")
        consumer.acknowledge(part)

    async with consuming(consumer, stop):
        while batch := await consumer.batch(size, age):
            recording: set[asyncio.Task[None]] = set()
            async with asyncio.TaskGroup() as group:
                for part in _parts(batch):
                    if len(recording) == _PARTS_AT_ONCE:
                        _, recording = await asyncio.wait(recording, return_when=asyncio.FIRST_COMPLETED)
                    recording.add(group.create_task(take(part)))


def _parts(batch: list[Incoming]) -> Iterator[list[Incoming]]:
    """Cuts a batch by its bytes, since a message may hold one result or a thousand."""
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
