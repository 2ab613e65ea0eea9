"""Starts a consumer and closes it, the same for every service."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from worker.amqp.errors import RECONNECT_INTERVAL
from worker.amqp.messages import QueueMissing
from worker.domain.failures import Stopped
from worker.lifecycle import on_stop, pause, watched

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from worker.amqp.messages import Consumer

log = structlog.get_logger(__name__)


@asynccontextmanager
async def consuming(consumer: Consumer, stop: asyncio.Event) -> AsyncIterator[None]:
    """Consumes while the block runs.

    After `stop` the consumer returns no more messages, and the block must end.

    An error in the consumer's own task ends the block, in an ExceptionGroup. The consumer is always closed:
    the last acknowledgements are sent, and the other messages go back to the queue.

    Raises:
        Stopped: `stop` was set while the queue is missing, and the block did not begin.
    """
    await _start(consumer, stop)
    try:
        async with watched(consumer.watch), on_stop(stop, consumer.stop):
            yield
    finally:
        await consumer.close()


async def _start(consumer: Consumer, stop: asyncio.Event) -> None:
    waiting = False
    while True:
        try:
            await consumer.start()
        except QueueMissing as error:
            if not waiting:
                log.warning("waiting for a queue", queue=consumer.queue, because=str(error))
            waiting = True
            if await pause(stop, RECONNECT_INTERVAL):
                raise Stopped(f"The process stops while there is no queue “{consumer.queue}”.") from error
        else:
            return
