"""Two stages alone: the fan-out with nobody who sends, and recording with nobody else at work."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from contracts import results, routing
from contracts.batch import MAX_ITEMS
from tests.bench.ceilings import claim_all
from tests.bench.installation import DELIVERY, SECONDS, opened
from tests.bench.machine import Case, CaseFailed, Measured, Meter
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.messages import Outgoing
from worker.lifecycle import pause

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.bench.installation import Installation

FANOUT = "fan-out alone"
RECORDING = "recording alone"
_OPEN = "SELECT count(*) FROM sendoff.delivery_page WHERE delivery_id = $1 AND state = 'open'"


def cases(installation: Installation, *, recipients: int, rounds: int) -> list[Case]:
    """Returns the two stages."""
    runs = {
        FANOUT: partial(fan_out, installation, recipients),
        RECORDING: partial(record, installation, recipients),
    }
    return [Case("stages", name, run, rounds) for name, run in runs.items()]


async def fan_out(installation: Installation, recipients: int) -> Measured:
    """Confirms a delivery and waits until its last page is published; the messages are thrown away."""
    template = await installation.prepared("null", recipients)
    queue = routing.Names(installation.settings.queue_prefix).queue(routing.send_queue("null"))
    commands = [("the rest", ["confirm", "schedule", "events"]), ("fanout", ["fanout"])]
    async with installation.cloned(template) as url, opened(url) as db:
        variables = {
            "SENDOFF_DATABASE_URL": url,
            "SENDOFF_SEND_QUEUE_HIGH_WATER": str(10 * recipients),
            "SENDOFF_SEND_QUEUE_SECONDS": "0",
        }
        try:
            async with installation.services(variables, commands) as processes, db.session() as session:

                async def done() -> bool:
                    return not await session.connection.fetchval(_OPEN, DELIVERY)

                meter = Meter(processes)
                await installation.confirm(DELIVERY)
                await _until(done)
                measured = meter.read(recipients)
        finally:
            channel = await installation.connection.channel()
            purged = await (await channel.get_queue(queue)).purge()
            await channel.close()
    if purged.message_count != recipients:
        raise CaseFailed(f"{purged.message_count} messages were published for {recipients} recipients.")
    return measured


async def record(installation: Installation, recipients: int) -> Measured:
    """Publishes results of claimed recipients, a thousand in a message, and waits until all are recorded."""
    names = routing.Names(installation.settings.queue_prefix)
    at = datetime.now(UTC)
    taken = [results.Taken(DELIVERY, n, 1, at, "null channel") for n in range(1, recipients + 1)]
    outgoing = [
        Outgoing(results.encode(taken[i : i + MAX_ITEMS]), routing.SENT)
        for i in range(0, recipients, MAX_ITEMS)
    ]
    publisher = BulkPublisher(
        installation.settings.amqp_url, name="bench", window=1_000, timeout=60, connect_timeout=60
    )
    await publisher.start()
    template = await installation.prepared("null", recipients)
    try:
        async with installation.cloned(template) as url, opened(url) as db:
            await claim_all(db, recipients)
            variables = {"SENDOFF_DATABASE_URL": url}
            async with installation.services(variables, [("results", ["results"])]) as processes:

                async def done() -> bool:
                    row = await db.fetchrow("read_deployment", delivery_id=DELIVERY)
                    return row is not None and row["sent"] == recipients

                meter = Meter(processes)
                await publisher.publish(names.exchange(routing.RESULTS), routing.SENT, outgoing)
                await _until(done)
                return meter.read(recipients)
    finally:
        await publisher.close()


async def _until(done: Callable[[], Awaitable[bool]]) -> None:
    never = asyncio.Event()
    async with asyncio.timeout(SECONDS):
        while not await done():
            await pause(never, 0.01)
