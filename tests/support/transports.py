"""Publishers and consumers of both transports, for the tests that both must pass."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.support.bulk_peers import SECONDS
from worker.amqp.bulk.consumer import BulkConsumer
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.messages import Outgoing
from worker.amqp.pika.connection import open_broker
from worker.amqp.pika.consumer import PikaConsumer
from worker.amqp.pika.publisher import PikaPublisher

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from aio_pika.abc import AbstractConnection

    from worker.amqp.messages import Incoming


class Transport:
    """Makes started publishers and consumers of one kind."""

    def __init__(self, kind: str, url: str, stack: AsyncExitStack) -> None:
        self.kind = kind
        self._url = url
        self._stack = stack

    async def publisher(self, url: str = "", window: int = 500) -> Any:
        url = url or self._url
        if self.kind == "bulk":
            bulk = BulkPublisher(url, name="test", window=window, timeout=SECONDS, connect_timeout=SECONDS)
            await bulk.start()
            self._stack.push_async_callback(bulk.close)
            return bulk
        broker = await open_broker(url, name="test", timeout=SECONDS)
        self._stack.push_async_callback(broker.close)
        publisher = PikaPublisher(broker.publishing, window=window, timeout=SECONDS)
        await publisher.start()
        return publisher

    async def consumer(self, queue: str, prefetch: int = 500, url: str = "") -> Any:
        url = url or self._url
        if self.kind == "bulk":
            bulk = BulkConsumer(url, queue, name="test", prefetch=prefetch, connect_timeout=SECONDS)
            await bulk.start()
            self._stack.push_async_callback(bulk.close)
            return bulk
        broker = await open_broker(url, name="test", timeout=SECONDS)
        self._stack.push_async_callback(broker.close)
        consumer = PikaConsumer(broker.consuming, queue, prefetch=prefetch)
        await consumer.start()
        return consumer


async def declare(admin: AbstractConnection, name: str) -> None:
    async with admin.channel() as channel:
        await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})


async def delete(admin: AbstractConnection, name: str) -> None:
    async with admin.channel() as channel:
        await channel.queue_delete(name)


async def ready(admin: AbstractConnection, queue: str, *, consumers: int | None = None) -> int:
    """How many messages wait, once the broker counts so many consumers: a gone one has given its own back."""
    async with asyncio.timeout(SECONDS), admin.channel() as channel:
        while True:
            found = (await channel.declare_queue(queue, passive=True)).declaration_result
            if consumers in (None, found.consumer_count):
                return found.message_count or 0


async def take(consumer: Any, count: int, *, settle: bool = True) -> list[Incoming]:
    taken: list[Incoming] = []
    async with asyncio.timeout(SECONDS):
        while len(taken) < count:
            batch = await consumer.batch(100, 0.01)
            taken += batch
            if settle:
                consumer.acknowledge(batch)
    return taken


async def finish(consumer: Any) -> None:
    await consumer.stop()
    await consumer.close()


async def present(consumer: Any, *, is_it: bool = True) -> None:
    async with asyncio.timeout(SECONDS):
        while await consumer.present() is not is_it:  # noqa: ASYNC110 - as in until
            await asyncio.sleep(0.01)


def numbered(count: int) -> list[Outgoing]:
    return [Outgoing(b"%d" % n, "t", f"id-{n}") for n in range(count)]
