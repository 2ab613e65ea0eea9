"""From the publish of a confirm command to the last outcome durable, for deliveries of few recipients.

Alone on an idle system, and beside a delivery of many recipients that was confirmed before. The clock starts
before the command is published, on a connection that stands, and stops when a reader of the database sees
every outcome counted.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from contracts.commands import Confirm
from contracts.routing import COMMANDS, CONFIRM, Names
from tests.bench.installation import DELIVERY, SECONDS
from tests.bench.machine import Case, CaseFailed, Measured
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.messages import Outgoing
from worker.lifecycle import pause

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.bench.installation import Installation, Run
    from worker.amqp.messages import Publisher

ALONE = "one recipient alone, confirm to recorded"
BESIDE = "ten recipients beside many, confirm to recorded"
FEW = 10
LOOK = 0.001
"""Seconds between two looks: by so much the figures may be too high."""
BREATH = 0.02
"""Seconds between two deliveries."""
EVERY = 0.1
LEAST, MOST = 20, 200
_RECORDED = """
SELECT delivery_id FROM sendoff.delivery_counter WHERE delivery_id = ANY ($1::bigint[])
GROUP BY delivery_id HAVING sum(sent) = $2
"""
_SENT = "SELECT coalesce(sum(sent), 0) FROM sendoff.delivery_counter WHERE delivery_id = $1"
_OVER = "SELECT state = 'finished' FROM sendoff.delivery_record WHERE delivery_id = $1"


def cases(installation: Installation, *, alone: int, beside: int, rounds: int) -> list[Case]:
    """Returns both cases: so many deliveries alone, and some beside one of so many recipients."""
    return [
        Case("latency", ALONE, partial(measure_alone, installation, alone), rounds),
        Case("latency", BESIDE, partial(measure_beside, installation, beside), rounds),
    ]


async def measure_alone(installation: Installation, deliveries: int) -> Measured:
    """Confirms deliveries of one recipient, one after the other."""
    never = asyncio.Event()
    async with installation.running("null", 1) as run, _publisher(installation) as publisher:
        numbers = [await installation.prepare(run.db, "null", 1) for _ in range(deliveries)]
        delays = []
        for number in numbers:
            delays.append(await _delay(installation, publisher, run, number, 1))
            await pause(never, BREATH)
    return _percentiles(delays)


async def measure_beside(installation: Installation, recipients: int) -> Measured:
    """Confirms a delivery of ten recipients every tenth of a second while one of so many runs.

    They do not wait for each other: a slow one must not keep the next from being measured.

    Raises:
        CaseFailed: the large one was over after too few of them.
    """
    never = asyncio.Event()
    async with (
        installation.running("null", recipients) as run,
        _publisher(installation) as publisher,
        run.db.session() as session,
    ):
        waiting = [await installation.prepare(run.db, "null", FEW) for _ in range(MOST)]
        started: dict[int, tuple[float, int]] = {}
        delays: list[float] = []
        meanwhile: list[int] = []
        await installation.confirm(DELIVERY)
        began = time.perf_counter()
        async with asyncio.timeout(SECONDS):
            while True:
                now = time.perf_counter()
                if waiting and now - began >= EVERY * (MOST - len(waiting)):
                    number = waiting.pop()
                    started[number] = now, await session.connection.fetchval(_SENT, DELIVERY)
                    await _confirm(installation, publisher, number)
                done = await session.connection.fetch(_RECORDED, list(started), FEW)
                if done:
                    now, sent = time.perf_counter(), await session.connection.fetchval(_SENT, DELIVERY)
                    both = [started.pop(row["delivery_id"]) for row in done]
                    delays += [now - at for at, _ in both]
                    meanwhile += [sent - before for _, before in both]
                if await session.connection.fetchval(_OVER, DELIVERY):
                    waiting.clear()
                    if not started:
                        break
                await pause(never, LOOK)
    if len(delays) < LEAST:
        raise CaseFailed(
            f"The large delivery was over after {len(delays)} small ones; it takes a larger one."
        )
    # What depends little on how busy the machine is with other things.
    percentiles = statistics.quantiles(meanwhile, n=100)
    ahead = {
        "p50, of the many meanwhile": percentiles[49],
        "p99, of the many meanwhile": percentiles[98],
    }
    return Measured(figures={**_percentiles(delays).figures, **ahead})


@asynccontextmanager
async def _publisher(installation: Installation) -> AsyncIterator[Publisher]:
    publisher = BulkPublisher(
        installation.settings.amqp_url, name="bench", window=10, timeout=60, connect_timeout=60
    )
    await publisher.start()
    try:
        yield publisher
    finally:
        await publisher.close()


async def _delay(
    installation: Installation, publisher: Publisher, run: Run, number: int, recipients: int
) -> float:
    """Confirms a delivery; returns the seconds until every outcome is counted for a reader."""
    never = asyncio.Event()
    started = time.perf_counter()
    async with asyncio.timeout(SECONDS), run.db.session() as session:
        await _confirm(installation, publisher, number)
        while not await session.connection.fetch(_RECORDED, [number], recipients):
            await pause(never, LOOK)
        return time.perf_counter() - started


async def _confirm(installation: Installation, publisher: Publisher, number: int) -> None:
    exchange = Names(installation.settings.queue_prefix).exchange(COMMANDS)
    command = Confirm(delivery_id=number, operator="ana", preparation=1, definitive=True)
    outgoing = Outgoing(command.model_dump_json().encode(), CONFIRM, message_id=str(uuid.uuid4()))
    await publisher.publish(exchange, CONFIRM, [outgoing])


def _percentiles(delays: list[float]) -> Measured:
    percentiles = statistics.quantiles([1000 * delay for delay in delays], n=100)
    return Measured(
        figures={"p50, ms": percentiles[49], "p99, ms": percentiles[98], "deliveries": len(delays)}
    )
