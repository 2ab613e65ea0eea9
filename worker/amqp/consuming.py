"""Consuming from a start to a stop, the same for every service."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from worker.lifecycle import on_stop, watched

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from worker.amqp.messages import Consumer


@asynccontextmanager
async def consuming(consumer: Consumer, stop: asyncio.Event) -> AsyncIterator[None]:
    """Consumes while the block runs; from `stop` on nothing more is delivered, and the block ends by itself.

    A consumer whose own task dies ends the block, in an ExceptionGroup. The consumer is closed in any case:
    what was settled is acknowledged, and the rest goes back to the queue.
    """
    await consumer.start()
    try:
        async with watched(consumer.watch), on_stop(stop, consumer.stop):
            yield
    finally:
        await consumer.close()
