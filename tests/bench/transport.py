"""Measures the bulk transport against aio-pika: confirmed publishes into a quorum queue, and consuming it.

Run it on the local servers: `eval "$(make -s up)"`, then `.venv/bin/python -m tests.bench.transport`. Both
take turns, so that whatever else the machine does troubles them alike; compare only the ratios elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import statistics
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aio_pika
import uvloop
from rich.console import Console
from rich.table import Table

from worker.amqp.bulk.consumer import BulkConsumer
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.messages import Outgoing
from worker.amqp.pika.connection import open_broker
from worker.amqp.pika.consumer import PikaConsumer
from worker.amqp.pika.publisher import PikaPublisher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BODY = b"x" * 374
WINDOW, BATCH, PREFETCH, SECONDS = 2_000, 500, 1_000, 60
KINDS = ("aio-pika", "bulk")


@asynccontextmanager
async def transport(kind: str, url: str, queue: str) -> AsyncIterator[tuple[Any, Any]]:
    """Yields a started publisher and a consumer that is not started."""
    if kind == "bulk":
        publisher: Any = BulkPublisher(
            url, name="bench", window=WINDOW, timeout=SECONDS, connect_timeout=SECONDS
        )
        consumer: Any = BulkConsumer(url, queue, name="bench", prefetch=PREFETCH, connect_timeout=SECONDS)
        await publisher.start()
        yield publisher, consumer
        await publisher.close()
        return
    broker = await open_broker(url, name="bench", timeout=SECONDS)
    publisher = PikaPublisher(broker.publishing, window=WINDOW, timeout=SECONDS)
    await publisher.start()
    yield publisher, PikaConsumer(broker.consuming, queue, prefetch=PREFETCH)
    await publisher.close()
    await broker.close()


async def measure(kind: str, url: str, messages: int) -> dict[str, float]:
    """Returns rates in messages a second and CPU of this process in microseconds a message."""
    queue = f"bench.{secrets.token_hex(6)}"
    admin = await aio_pika.connect(url, timeout=SECONDS)
    try:
        channel = await admin.channel()
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
        async with transport(kind, url, queue) as (publisher, consumer):
            outgoing = [Outgoing(BODY, "send", f"42-{n}-1") for n in range(messages)]
            wall, cpu = time.perf_counter(), time.process_time()
            for at in range(0, messages, 1_000):
                await publisher.publish("", queue, outgoing[at : at + 1_000])
            published = time.perf_counter() - wall, time.process_time() - cpu
            # The same, as many tasks do it at once.
            wall, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(
                *(publisher.publish("", queue, outgoing[at : at + 1_000]) for at in range(0, messages, 1_000))
            )
            together = time.perf_counter() - wall, time.process_time() - cpu
            wall, cpu = time.perf_counter(), time.process_time()
            await consumer.start()
            left = 2 * messages
            while left:
                batch = await consumer.batch(BATCH)
                left -= len(batch)
                consumer.acknowledge(batch)
            await consumer.stop()
            await consumer.close()
            consumed = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        channel = await admin.channel()
        await channel.queue_delete(queue)
        await admin.close()
    return {
        "publish in turn, msg/s": messages / published[0],
        "publish in turn, CPU µs/msg": published[1] / messages * 1e6,
        "publish at once, msg/s": messages / together[0],
        "publish at once, CPU µs/msg": together[1] / messages * 1e6,
        "consume, msg/s": 2 * messages / consumed[0],
        "consume, CPU µs/msg": consumed[1] / (2 * messages) * 1e6,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    options = parser.parse_args()
    url = os.environ["SENDOFF_AMQP_URL"]
    run = uvloop.run if options.loop == "uvloop" else asyncio.run
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind in KINDS:
            rounds[kind].append(run(measure(kind, url, options.messages)))
    title = f"{options.rounds} rounds of {options.messages:,} messages of {len(BODY)} bytes on {options.loop}"
    table = Table("median (least – most)", *KINDS, "bulk / aio-pika, by round", title=title)
    for name in rounds["bulk"][0]:
        values = [[found[name] for found in rounds[kind]] for kind in KINDS]
        cells = [f"{statistics.median(v):,.1f} ({min(v):,.1f} – {max(v):,.1f})" for v in values]
        table.add_row(
            name, *cells, ", ".join(f"{bulk / pika:.2f}" for pika, bulk in zip(*values, strict=True))
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
