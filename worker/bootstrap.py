"""The composition root: the only place where settings become connections, and connections become services."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from contracts import routing
from worker.amqp import topology
from worker.amqp.connection import open_broker
from worker.amqp.consumer import Consumer
from worker.amqp.publisher import Publisher
from worker.db.listen import Wakener
from worker.db.pool import open_database
from worker.email.channel import EmailChannel
from worker.email.smtp import SmtpPool
from worker.lifecycle import run_services, stop_on_signals
from worker.services.channels import NullChannel
from worker.services.confirm import ConfirmService
from worker.services.dead import DeadQueue
from worker.services.fanout import FanoutService
from worker.services.results import ResultsService
from worker.services.schedule import ScheduleService
from worker.services.send import SendService
from worker.services.stats import StatsService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from worker.amqp.connection import Broker
    from worker.db.pool import Database
    from worker.lifecycle import Service
    from worker.services.channels import Channel
    from worker.settings import Settings

log = structlog.get_logger(__name__)

SERVICES: Final = ("confirm", "fanout", "send", "results", "stats", "schedule")
"""The services by name, as `sendoff run` takes them."""

_SHARDS: Final = 16


@dataclass(frozen=True, slots=True)
class Worker:
    """What one process is made of."""

    settings: Settings
    names: routing.Names
    broker: Broker
    publisher: Publisher
    db: Database
    owner: str
    shard: int

    def build(self, name: str) -> list[Service]:
        """Builds the services of a name: one, or for *send* one per channel."""
        builders: dict[str, Callable[[], list[Service]]] = {
            "confirm": lambda: [self._confirm()],
            "fanout": lambda: [self._fanout()],
            "send": lambda: [self._send(channel) for channel in self.settings.channels],
            "results": lambda: [self._results()],
            "stats": lambda: [self._stats()],
            "schedule": lambda: [self._schedule()],
        }
        return builders[name]()

    def _consumer(self, queue: str, prefetch: int) -> Consumer:
        return Consumer(self.broker.consuming, self.names.queue(queue), prefetch=prefetch)

    def _dead(self) -> DeadQueue:
        return DeadQueue(self.publisher, self.names)

    def _confirm(self) -> Service:
        consumer = self._consumer(routing.COMMANDS_QUEUE, 10)
        return ConfirmService(
            consumer, self.publisher, self.db, page_size=self.settings.page_size, shard=self.shard
        )

    def _fanout(self) -> Service:
        s = self.settings
        return FanoutService(
            self.publisher,
            topology.QueueDepth(self.broker.consuming),
            Wakener(s.database_url, timeout=s.connect_timeout),
            self.db,
            self.names,
            channels=s.channels,
            owner=self.owner,
            lease=s.page_lease,
            look_after=s.page_look_after,
            high_water=s.send_queue_high_water,
            idle=s.tick,
        )

    def _send(self, channel_name: str) -> Service:
        s = self.settings
        channel: Channel = NullChannel()
        if channel_name != "null":
            channel = EmailChannel(SmtpPool(s.smtp_url, size=s.smtp_connections, timeout=s.smtp_timeout))
        return SendService(
            channel_name,
            channel,
            self._consumer(routing.send_queue(channel_name), min(2 * s.send_batch, 2_000)),
            self.publisher,
            self._dead(),
            self.db,
            self.names,
            batch=s.send_batch,
            shard=self.shard,
        )

    def _results(self) -> Service:
        s = self.settings
        queues = (routing.SENT_QUEUE, routing.BOUNCE_QUEUE, routing.ERROR_QUEUE)
        return ResultsService(
            [self._consumer(q, min(2 * s.result_batch, 2_000)) for q in queues],
            self._dead(),
            self.db,
            batch=s.result_batch,
            age=s.result_batch_age,
            shard=self.shard,
        )

    def _stats(self) -> Service:
        consumer = self._consumer(routing.STATS_QUEUE, 10)
        return StatsService(consumer, self.publisher, self._dead(), self.db, shard=self.shard)

    def _schedule(self) -> Service:
        s = self.settings
        return ScheduleService(
            topology.QueueDepth(self.broker.consuming),
            self.db,
            self.names,
            tick=s.tick,
            claim_lease=s.claim_lease,
            look_after=s.page_look_after,
            redelivery_after=s.redelivery_after,
            shard=self.shard,
        )


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncIterator[Worker]:
    """Connects to everything, checks that it is as this code needs it, and closes it all in the end.

    Raises:
        DatabaseUnreachable, BrokerUnreachable: there is nothing at the address.
        SchemaMismatch, TopologyMismatch: it is not set up, or not for this version.
    """
    owner = f"{socket.gethostname()}:{os.getpid()}"
    name = f"sendoff {owner}"
    async with AsyncExitStack() as stack:
        db = await open_database(
            settings.database_url,
            size=settings.database_pool,
            connect_timeout=settings.connect_timeout,
            command_timeout=settings.command_timeout,
            application=name,
        )
        stack.push_async_callback(db.close)
        await db.check()
        broker = await open_broker(settings.amqp_url, name=name, timeout=settings.connect_timeout)
        stack.push_async_callback(broker.close)
        names = routing.Names(settings.queue_prefix)
        await topology.check(broker.consuming, names, settings.channels)
        publisher = Publisher(
            broker.publishing, window=settings.publish_window, timeout=settings.command_timeout
        )
        await publisher.start()
        shard = random.randrange(_SHARDS)  # noqa: S311 - spreads the counters' rows, nothing secret
        yield Worker(settings, names, broker, publisher, db, owner, shard)


async def run(settings: Settings, services: Sequence[str], stop: asyncio.Event | None = None) -> None:
    """Runs services until a signal, or until `stop` is set.

    Args:
        settings: The settings.
        services: Names out of `SERVICES`.
        stop: Set by a test; signals set it too.

    Raises:
        What `open_worker` raises, and ServiceDied.
    """
    stop = stop or asyncio.Event()
    stop_on_signals(stop)
    async with open_worker(settings) as worker:
        running = [service for name in services for service in worker.build(name)]
        log.info("running", services=[s.name for s in running], owner=worker.owner)
        await run_services(running, stop, grace=settings.shutdown_grace)
    log.info("stopped")
