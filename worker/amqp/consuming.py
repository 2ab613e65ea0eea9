"""Starts a consumer and closes it, the same for every service."""

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
    """Consumes while the block runs.

    After `stop` the consumer returns no more messages, and the block must end.

    An error in the consumer's own task ends the block, in an ExceptionGroup. The consumer is always closed:
    the last acknowledgements are sent, and the other messages go back to the queue.
    """
    await consumer.start()
    try:
        async with watched(consumer.watch), on_stop(stop, consumer.stop):
            yield
    finally:
        await consumer.close()
