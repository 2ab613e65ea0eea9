"""TaskIQ with taskiq-aio-pika, after “Getting started”, “Available brokers” and the command line's page.

https://taskiq-python.github.io/guide/getting-started.html
https://taskiq-python.github.io/available-components/brokers.html, https://taskiq-python.github.io/guide/cli.html
As documented: a task per stage, `await task.kiq()`, a quorum queue, acknowledged after the task, 2 workers
on uvloop. Tuned: pages of recipients as tasks of their own; 500 publishes awaited together; prefetch and
tasks at a time of 500; orjson; arguments not parsed; rows of tasks that wait at the same time written in one
statement.
"""

from __future__ import annotations

import asyncio

from job import AMQP_URL, TUNED, AsyncStore, Fields, pages
from job import send as null_send
from taskiq import TaskiqEvents, TaskiqState
from taskiq.serializers import ORJSONSerializer
from taskiq_aio_pika import AioPikaBroker
from taskiq_aio_pika.queue import Queue, QueueType

store = AsyncStore()
queue = Queue(name="bench_taskiq", type=QueueType.QUORUM)
broker = AioPikaBroker(AMQP_URL, task_queues=[queue], **({"qos": 500} if TUNED else {}))
if TUNED:
    broker = broker.with_serializer(ORJSONSerializer())


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def open_store(_state: TaskiqState) -> None:
    await store.open()


@broker.task
async def fan_out(delivery: int) -> None:
    if TUNED:
        for first, last in pages(await store.size(delivery)):
            await fan_out_page.kiq(delivery, first, last)
        return
    for fields in await store.read(delivery):
        await send.kiq(fields)


@broker.task
async def fan_out_page(delivery: int, first: int, last: int) -> None:
    rows = await store.read(delivery, first, last)
    await asyncio.gather(*(send.kiq(fields) for fields in rows))


@broker.task
async def send(fields: Fields) -> None:
    await record.kiq(null_send(fields))


@broker.task
async def record(result: Fields) -> None:
    await (store.record_together if TUNED else store.record)(result)


async def connect() -> None:
    await broker.startup()


async def confirm(delivery: int) -> None:
    await fan_out.kiq(delivery)
