"""FastStream, after its pages “RabbitMQ”, “Queues”, “Publishing” and “Acknowledgement”.

https://faststream.ag2.ai/latest/rabbit/, https://faststream.ag2.ai/latest/rabbit/publishing/
https://faststream.ag2.ai/latest/getting-started/acknowledgement/
https://faststream.ag2.ai/latest/getting-started/cli/
As documented: a subscriber per stage, `await broker.publish()`, quorum queues, the default acknowledgement
(after the handler), 2 workers on uvloop. Tuned: pages of recipients as messages of their own; 500 publishes
awaited together; prefetch of 500; no dependency injection; rows of handlers that wait at the same time
written in one statement.
"""

from __future__ import annotations

import asyncio

import orjson
from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue
from faststream.rabbit.schemas.queue import QueueType
from job import AMQP_URL, TUNED, AsyncStore, Fields, pages
from job import send as null_send

COMMANDS, PAGES, SENDS, RESULTS = (
    "bench_faststream_commands",
    "bench_faststream_pages",
    "bench_faststream_sends",
    "bench_faststream_results",
)


def quorum(name: str) -> RabbitQueue:
    return RabbitQueue(name, queue_type=QueueType.QUORUM, durable=True)


async def decode(message: RabbitMessage) -> Fields:
    fields: Fields = orjson.loads(message.body)
    return fields


store = AsyncStore()
if TUNED:
    broker = RabbitBroker(
        AMQP_URL, default_channel=Channel(prefetch_count=500), logger=None, apply_types=False, decoder=decode
    )
else:
    broker = RabbitBroker(AMQP_URL)
app = FastStream(broker)


@app.on_startup
async def open_store() -> None:
    await store.open()


async def publish(fields: Fields, queue: str) -> None:
    if TUNED:
        await broker.publish(orjson.dumps(fields), queue, persist=True, content_type="application/json")
    else:
        await broker.publish(fields, queue, persist=True)


@broker.subscriber(quorum(COMMANDS))
async def fan_out(command: Fields) -> None:
    delivery = command["delivery_id"]
    if TUNED:
        for first, last in pages(await store.size(delivery)):
            await publish({"delivery_id": delivery, "first": first, "last": last}, PAGES)
        return
    for fields in await store.read(delivery):
        await publish(fields, SENDS)


@broker.subscriber(quorum(PAGES))
async def fan_out_page(page: Fields) -> None:
    rows = await store.read(page["delivery_id"], page["first"], page["last"])
    await asyncio.gather(*(publish(fields, SENDS) for fields in rows))


@broker.subscriber(quorum(SENDS))
async def send(fields: Fields) -> None:
    await publish(null_send(fields), RESULTS)


@broker.subscriber(quorum(RESULTS))
async def record(result: Fields) -> None:
    await (store.record_together if TUNED else store.record)(result)


async def connect() -> None:
    await broker.connect()


async def confirm(delivery: int) -> None:
    await publish({"delivery_id": delivery}, COMMANDS)
