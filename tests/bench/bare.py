"""The bare pipeline: the same three stages over the same transport, with nothing that guarantees anything.

No claims, no states, no retries, no leases, no limits, no checks of what comes in, and one result a message;
three processes. What this project is slower by is what its guarantees cost, less what it gains by batches of
results.

    python -m tests.bench.bare fanout | send | results
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import asyncpg
import pydantic_core
import uvloop

from tests.bench.frameworks import count_rows, template
from tests.bench.installation import DELIVERY, SECONDS, WARM_UP, end
from tests.bench.machine import Case, CaseFailed, Measured, Meter
from worker.amqp.bulk.consumer import BulkConsumer
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.messages import Outgoing
from worker.lifecycle import pause

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.bench.installation import Installation
    from worker.amqp.messages import Incoming

NAME = "bare pipeline without guarantees"
COMMANDS, SENDS, RESULTS = QUEUES = ("bench.bare.commands", "bench.bare.sends", "bench.bare.results")
AT_ONCE, IN_FLIGHT = 500, 8
PAGE = 2_000

_READ = """
SELECT '{"delivery_id":' || delivery_id || ',"recipient":' || recipient || ',"attempt":1,"address":'
       || to_json(address) || ',"variables":' || variables || '}' AS body
FROM peers.recipient WHERE delivery_id = $1 AND recipient > $2 AND recipient <= $2 + $3 ORDER BY recipient
"""
_RECORD = """
WITH written AS (
    INSERT INTO peers.outcome (delivery_id, recipient, attempt, sent_at, reply)
    SELECT d, r, 1, now(), 'null channel' FROM unnest($1::bigint[], $2::int[]) AS result (d, r)
    ON CONFLICT DO NOTHING
    RETURNING delivery_id
)
INSERT INTO peers.counter AS c SELECT delivery_id, count(*) FROM written GROUP BY delivery_id
ON CONFLICT (delivery_id) DO UPDATE SET sent = c.sent + excluded.sent
"""


def cases(installation: Installation, *, recipients: int, rounds: int) -> list[Case]:
    """Returns the one case."""
    return [Case("bare", NAME, partial(measure, installation, recipients), rounds)]


async def measure(installation: Installation, recipients: int) -> Measured:
    """Has three processes do it.

    Raises:
        CaseFailed: not everybody has a row.
    """
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(installation.cloned(await template(installation, recipients)))
        channel = await installation.connection.channel()
        for queue in QUEUES:
            await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
            stack.push_async_callback(channel.queue_delete, queue)
        database = await asyncpg.connect(url, timeout=30)
        stack.push_async_callback(database.close, timeout=30)
        processes = {
            role: await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.bench.bare", role),
                env=os.environ | {"SENDOFF_DATABASE_URL": url},
            )
            for role in ROLES
        }
        stack.push_async_callback(end, list(processes.values()))
        publisher = BulkPublisher(
            installation.settings.amqp_url, name="bench", window=10, timeout=60, connect_timeout=60
        )
        await publisher.start()
        stack.push_async_callback(publisher.close)
        await publisher.publish("", COMMANDS, [Outgoing(str(WARM_UP).encode(), "command")])
        await _recorded(database, WARM_UP, 1)
        meter = Meter({role: [process.pid] for role, process in processes.items()})
        await publisher.publish("", COMMANDS, [Outgoing(str(DELIVERY).encode(), "command")])
        await _recorded(database, DELIVERY, recipients)
        measured = meter.read(recipients)
        if (await count_rows(database, DELIVERY))["rows"] != recipients:
            raise CaseFailed("Its counter is not the number of its rows.")
    return measured


async def _recorded(database: asyncpg.Connection, delivery: int, recipients: int) -> None:
    never = asyncio.Event()
    async with asyncio.timeout(SECONDS):
        query = "SELECT sent FROM peers.counter WHERE delivery_id = $1"
        while await database.fetchval(query, delivery) != recipients:
            await pause(never, 0.02)


class Bare:
    """One process: what it consumes, batch by batch, and what becomes of a batch."""

    def __init__(self, publisher: BulkPublisher, database: asyncpg.Connection) -> None:
        self._publisher = publisher
        self._database = database

    async def fan_out(self, batch: list[Incoming]) -> None:
        """Publishes every recipient of a delivery."""
        delivery, last = int(batch[0].body), 0
        flying: set[asyncio.Task[None]] = set()
        while rows := await self._database.fetch(_READ, delivery, last, PAGE):
            last += len(rows)
            messages = [Outgoing(row["body"].encode(), "send") for row in rows]
            for at in range(0, len(messages), AT_ONCE):
                if len(flying) >= IN_FLIGHT:
                    _, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                part = self._publisher.publish("", SENDS, messages[at : at + AT_ONCE])
                flying.add(asyncio.create_task(part))
        await asyncio.gather(*flying)

    async def send(self, batch: list[Incoming]) -> None:
        """Publishes a result for each send message."""
        results = []
        for message in batch:
            fields = pydantic_core.from_json(message.body)
            result = {
                "delivery_id": fields["delivery_id"],
                "recipient": fields["recipient"],
                "attempt": fields["attempt"],
                "reply": "null channel",
            }
            results.append(Outgoing(pydantic_core.to_json(result), "sent"))
        await self._publisher.publish("", RESULTS, results)

    async def record(self, batch: list[Incoming]) -> None:
        """Writes a row for each result, and moves the counter."""
        results = [pydantic_core.from_json(message.body) for message in batch]
        numbers = [result["delivery_id"] for result in results]
        await self._database.execute(_RECORD, numbers, [result["recipient"] for result in results])


ROLES: dict[str, tuple[str, int, Callable[[Bare, list[Incoming]], Awaitable[None]]]] = {
    "fanout": (COMMANDS, 1, Bare.fan_out),
    "send": (SENDS, IN_FLIGHT, Bare.send),
    "results": (RESULTS, 1, Bare.record),
}
"""By the role: the queue, how many batches at once, and what is done with each."""


async def work(role: str) -> None:
    """Does one role until the process is ended."""
    queue, at_once, handle = ROLES[role]
    url = os.environ["SENDOFF_AMQP_URL"]
    publisher = BulkPublisher(url, name=f"bare {role}", window=4_000, timeout=60, connect_timeout=60)
    await publisher.start()
    consumer = BulkConsumer(url, queue, name=f"bare {role}", prefetch=4_000, connect_timeout=60)
    await consumer.start()
    bare = Bare(publisher, await asyncpg.connect(os.environ["SENDOFF_DATABASE_URL"], timeout=30))
    free = asyncio.Semaphore(at_once)

    async def done(batch: list[Incoming]) -> None:
        await handle(bare, batch)
        consumer.acknowledge(batch)
        free.release()

    async with asyncio.TaskGroup() as group:
        while batch := await consumer.batch(AT_ONCE, 0.005):
            await free.acquire()
            group.create_task(done(batch))


if __name__ == "__main__":
    uvloop.run(work(sys.argv[1]))
