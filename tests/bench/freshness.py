"""How fresh the KPIs are under full load: from the broker's confirm of a result to a reader of the view.

While one delivery of many recipients runs, results of a second one, on a channel that nobody here sends over,
are published at a steady pace, and its row in `sendoff.deployment` is read every few milliseconds. Results of
one delivery are counted in the order of their publishing, so the n-th is seen when `sent` reaches n.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from contracts import results, routing
from tests.bench.installation import DELIVERY, SECONDS, finished
from tests.bench.machine import Case, CaseFailed, Measured
from worker.amqp import topology
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.messages import Outgoing
from worker.lifecycle import pause

if TYPE_CHECKING:
    import asyncpg

    from tests.bench.installation import Installation

CHANNEL = "probe"
PACE = 0.02
"""Seconds between two results: fifty a second beside twenty thousand."""
LOOK = 0.01
PROBES = 5_000
NAME = "KPI freshness under full load"
LEAST = 50
"""Fewer results than that say nothing about the 99th percentile."""


@dataclass
class Probe:
    """The small delivery: when each of its results was confirmed, and when each was seen."""

    delivery: int
    confirmed: list[float] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)

    async def publish(self, publisher: BulkPublisher, exchange: str, stop: asyncio.Event) -> None:
        """Publishes one result after the other until `stop`."""
        for recipient in range(1, PROBES + 1):
            result = results.Sent(
                delivery_id=self.delivery, recipient=recipient, attempt=1, at=datetime.now(UTC), reply="probe"
            )
            await publisher.publish(
                exchange, routing.SENT, [Outgoing(results.encode([result]), routing.SENT)]
            )
            self.confirmed.append(time.perf_counter())
            await pause(stop, PACE)
            if stop.is_set():
                return

    async def look(self, connection: asyncpg.Connection, published: asyncio.Event) -> None:
        """Reads the view until all that was confirmed is seen, and nothing more is published."""
        never = asyncio.Event()
        while not (published.is_set() and len(self.seen) >= len(self.confirmed)):
            sent = await connection.fetchval(
                "SELECT sent FROM sendoff.deployment WHERE delivery_id = $1", self.delivery
            )
            now = time.perf_counter()
            self.seen += [now] * (sent - len(self.seen))
            await pause(never, LOOK)

    def delays(self, until: float) -> list[float]:
        """Returns, for the results confirmed before `until`, the seconds until each was seen.

        A reader may see a result before its publisher hears of the confirm: no delay.
        """
        pairs = zip(self.confirmed, self.seen, strict=True)
        return [max(0.0, seen - confirmed) for confirmed, seen in pairs if confirmed <= until]


def cases(installation: Installation, *, recipients: int, rounds: int) -> list[Case]:
    """Returns the one case."""
    return [Case("freshness", NAME, partial(measure, installation, recipients), rounds)]


async def measure(installation: Installation, recipients: int) -> Measured:
    """Returns percentiles of the delay in milliseconds, while a delivery of so many recipients runs.

    Raises:
        CaseFailed: the delivery ended before there were enough results.
    """
    channels = (*installation.settings.channels, CHANNEL)
    names = routing.Names(installation.settings.queue_prefix)
    await topology.declare(installation.connection, names, channels)
    try:
        variables = {"SENDOFF_CHANNELS": json.dumps(channels)}
        async with installation.running("null", recipients, settings=variables) as run:
            probe = Probe(await installation.prepare(run.db, CHANNEL, PROBES, channels))
            await installation.confirm(probe.delivery)
            publisher = BulkPublisher(
                installation.settings.amqp_url, name="bench", window=10, timeout=60, connect_timeout=60
            )
            await publisher.start()
            stop, published = asyncio.Event(), asyncio.Event()
            async with asyncio.timeout(SECONDS), run.db.session() as reader, asyncio.TaskGroup() as group:
                looking = group.create_task(probe.look(reader.connection, published))
                await installation.confirm(DELIVERY)
                publishing = group.create_task(
                    probe.publish(publisher, names.exchange(routing.RESULTS), stop)
                )
                await finished(run.db, DELIVERY, 0.1)
                ended = time.perf_counter()
                stop.set()
                await publishing
                published.set()
                await looking
            await publisher.close()
    finally:
        channel = await installation.connection.channel()
        await channel.queue_delete(names.queue(routing.send_queue(CHANNEL)))
        await channel.close()
    delays = [1000 * delay for delay in probe.delays(ended)]
    if len(delays) < LEAST:
        raise CaseFailed(f"The delivery ended after {len(delays)} results; it takes a larger one to say.")
    percentiles = statistics.quantiles(delays, n=100)
    return Measured(
        figures={"p50, ms": percentiles[49], "p99, ms": percentiles[98], "most, ms": max(delays)},
    )
