"""The composition root: the only place where settings become connections, and connections become services."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector

from contracts import routing
from worker.amqp import topology
from worker.amqp.bulk.consumer import BulkConsumer
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.dead import DeadQueue
from worker.amqp.pika.connection import open_broker
from worker.amqp.pika.consumer import PikaConsumer
from worker.amqp.pika.publisher import PikaPublisher
from worker.auth.authority import Authority
from worker.auth.tokens import open_verifier
from worker.channels.registry import CHANNELS
from worker.db import listen
from worker.db.accounts import Accounts
from worker.db.failures import ERRORS, classify
from worker.db.pool import SchemaMismatch, open_database
from worker.domain.breaker import Limits
from worker.domain.failures import Failure
from worker.domain.retry import Retries
from worker.domain.servers import unprotected
from worker.lifecycle import Watching, run_services, stop_on_signals
from worker.services.commands import ConfirmService
from worker.services.events import EventsService
from worker.services.fanout import FanoutService
from worker.services.results import ResultsService
from worker.services.schedule import ScheduleService
from worker.services.send import SendService
from worker.services.stats import StatsService
from worker.services.tracking import TrackingService, open_machines
from worker.telemetry.health import serving
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from worker.amqp.messages import Consumer, Publisher
    from worker.amqp.pika.connection import Broker
    from worker.channels.protocol import Kind
    from worker.db.pool import Database
    from worker.lifecycle import Service
    from worker.settings import Settings
    from worker.telemetry.health import Probe

log = structlog.get_logger(__name__)

SERVICES: Final = ("confirm", "fanout", "send", "results", "tracking", "stats", "schedule", "events")
"""The services by name, as `sendoff run` takes them."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What one process is made of."""

    settings: Settings
    names: routing.Names
    broker: Broker
    publisher: Publisher
    bulk_publisher: Publisher
    db: Database
    accounts: Accounts
    registry: CollectorRegistry
    metrics: Metrics
    owner: str
    channels: Mapping[str, Kind]
    consumers: list[Consumer] = field(default_factory=list)
    """Those of the services that were built: the broker must know every one of them."""

    def build(self, name: str) -> list[Service]:
        """Builds the services of a name: one, or for *send* one per channel."""
        builders: dict[str, Callable[[], list[Service]]] = {
            "confirm": lambda: [self._confirm()],
            "fanout": lambda: [self._fanout()],
            "send": lambda: [self._send(c) for c in self.settings.channels if c in self.channels],
            "results": lambda: [self._results()],
            "tracking": lambda: [self._tracking()],
            "stats": lambda: [self._stats()],
            "schedule": lambda: [self._schedule()],
            "events": lambda: [self._events()],
        }
        return builders[name]()

    def background(self) -> list[Service]:
        """Returns what runs beside the services, whichever they are, and stops the process if it dies."""
        if isinstance(self.bulk_publisher, BulkPublisher):
            return [Watching("the connection that publishes", self.bulk_publisher.watch)]
        return []

    def probes(self, stop: asyncio.Event) -> dict[str, Probe]:
        """Returns what the readiness of the process hangs on, by part."""

        async def process() -> str:
            return "The process is stopping." if stop.is_set() else ""

        async def broker() -> str:
            connected = self.broker.connected and self.bulk_publisher.connected
            return "" if connected else "The connection to the broker is lost."

        async def consumers() -> str:
            absent = [c.queue for c in self.consumers if not await c.present()]
            return f"The broker does not deliver from: {', '.join(absent)}." if absent else ""

        async def database() -> str:
            try:
                await self.db.check_version()
            except SchemaMismatch as error:
                return str(error)
            except ERRORS as error:
                what = "is out of reach" if classify(error) is Failure.AWAY else "does not do it"
                return f"The database {what}: {str(error) or type(error).__name__}."
            return ""

        return {"process": process, "broker": broker, "consumers": consumers, "database": database}

    def _consumer(self, queue: str, prefetch: int) -> Consumer:
        consumer = PikaConsumer(self.broker.consuming, self.names.queue(queue), prefetch=prefetch)
        self.consumers.append(consumer)
        return consumer

    def _bulk_consumer(self, queue: str, prefetch: int) -> Consumer:
        """Returns a consumer for what there is one of for every recipient."""
        s = self.settings
        if s.transport == "aio-pika":
            return self._consumer(queue, prefetch)
        consumer = BulkConsumer(
            s.amqp_url,
            self.names.queue(queue),
            name=f"sendoff {self.owner} consume",
            prefetch=prefetch,
            connect_timeout=s.connect_timeout,
        )
        self.consumers.append(consumer)
        return consumer

    def _dead(self) -> DeadQueue:
        return DeadQueue(self.publisher, self.names, self.metrics)

    def _confirm(self) -> Service:
        consumer = self._consumer(routing.COMMANDS_QUEUE, 10)
        return ConfirmService(
            consumer,
            self.publisher,
            self._dead(),
            self.db,
            self.metrics,
            Authority(frozenset(self.settings.publishers), open_verifier(self.settings)),
            page_size=self.settings.page_size,
        )

    def _fanout(self) -> Service:
        s = self.settings
        return FanoutService(
            self.bulk_publisher,
            topology.QueueDepth(self.broker.consuming),
            listen.Wakener(s.database_url, listen.PAGES, timeout=s.connect_timeout),
            self.db,
            self.names,
            self.metrics,
            channels=s.channels,
            owner=self.owner,
            lease=s.page_lease,
            look_after=s.page_look_after,
            high_water=s.send_queue_high_water,
            idle=s.tick,
        )

    def _send(self, channel_name: str) -> Service:
        s = self.settings
        channel = self.channels[channel_name].open(s)
        # A channel that waits is given no more than it will soon need: the rest is for other processes.
        prefetch = min(2 * s.send_batch, 2_000) if channel.concurrency is None else s.send_batch
        return SendService(
            channel_name,
            channel,
            self._bulk_consumer(routing.send_queue(channel_name), prefetch),
            self.bulk_publisher,
            self._dead(),
            self.db,
            self.names,
            self.metrics,
            accounts=self.accounts,
            batch=s.send_batch,
            age=s.send_batch_age,
        )

    def _results(self) -> Service:
        s = self.settings
        queues = (routing.SENT_QUEUE, routing.BOUNCE_QUEUE, routing.ERROR_QUEUE)
        return ResultsService(
            [self._bulk_consumer(q, min(2 * s.result_batch, 2_000)) for q in queues],
            self._dead(),
            self.db,
            self.accounts,
            self.metrics,
            batch=s.result_batch,
            age=s.result_batch_age,
            limits=Limits(s.breaker_minimum, s.breaker_hard_bounce_pct, s.breaker_error_pct),
            retries=Retries(s.retry_delays, s.max_attempts),
        )

    def _tracking(self) -> Service:
        s = self.settings
        return TrackingService(
            self._bulk_consumer(routing.TRACKING_QUEUE, min(2 * s.tracking_batch, 2_000)),
            self._dead(),
            self.db,
            self.accounts,
            self.metrics,
            open_machines(s),
            batch=s.tracking_batch,
            age=s.tracking_batch_age,
        )

    def _stats(self) -> Service:
        s = self.settings
        return StatsService(
            self._consumer(routing.STATS_QUEUE, 1_000),
            self.publisher,
            self._dead(),
            self.db,
            self.metrics,
            deadline=min(s.stats_deadline, s.command_timeout),
            at_once=max(s.database_pool // 4, 1),
        )

    def _events(self) -> Service:
        s = self.settings
        return EventsService(
            self.publisher,
            listen.Wakener(s.database_url, listen.EVENTS, timeout=s.connect_timeout),
            self.db,
            self.names,
            self.metrics,
            idle=s.tick,
            lease=s.event_lease,
        )

    def _schedule(self) -> Service:
        s = self.settings
        return ScheduleService(
            topology.QueueDepth(self.broker.consuming),
            self.db,
            self.accounts,
            self.names,
            self.metrics,
            tick=s.tick,
            claim_lease=s.claim_lease,
            look_after=s.page_look_after,
            redelivery_after=s.redelivery_after,
            alert_interval=s.alert_interval,
        )


@asynccontextmanager
async def open_worker(
    settings: Settings, channels: Mapping[str, Kind] = CHANNELS, stop: asyncio.Event | None = None
) -> AsyncIterator[Worker]:
    """Connects to everything, checks that it is as this code needs it, and closes it all in the end.

    Args:
        settings: The settings.
        channels: Those that we send over; a test puts in its own.
        stop: Once it is set, nobody waits for a database or a broker that is away.

    Raises:
        DatabaseUnreachable, BrokerUnreachable: there is nothing at the address.
        SchemaMismatch, TopologyMismatch: it is not set up, or not for this version.
    """
    owner = f"{socket.gethostname()}:{os.getpid()}"
    name = f"sendoff {owner}"
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    metrics = Metrics.create(registry)
    stop = stop or asyncio.Event()
    async with AsyncExitStack() as stack:
        db = await open_database(
            settings.database_url,
            size=settings.database_pool,
            connect_timeout=settings.connect_timeout,
            command_timeout=settings.command_timeout,
            application=name,
            stop=stop,
            on_away=metrics.database_failures.inc,
            on_busy=lambda doing: metrics.database_busy.labels(doing).inc(),
        )
        stack.push_async_callback(db.close)
        await db.check()
        broker = await open_broker(settings.amqp_url, name=name, timeout=settings.connect_timeout)
        stack.push_async_callback(broker.close)
        names = routing.Names(settings.queue_prefix)
        await topology.check(broker.consuming, names, settings.channels)
        publisher = PikaPublisher(
            broker.publishing, window=settings.publish_window, timeout=settings.command_timeout, stop=stop
        )
        await publisher.start()
        bulk_publisher: Publisher = publisher
        if settings.transport == "bulk":
            bulk = BulkPublisher(
                settings.amqp_url,
                name=f"{name} publish",
                window=settings.publish_window,
                timeout=settings.command_timeout,
                connect_timeout=settings.connect_timeout,
                stop=stop,
            )
            await bulk.start()
            stack.push_async_callback(bulk.close)
            bulk_publisher = bulk
        metrics.broker_connected.set_function(lambda: broker.connected and bulk_publisher.connected)
        yield Worker(
            settings,
            names,
            broker,
            publisher,
            bulk_publisher,
            db,
            Accounts(db),
            registry,
            metrics,
            owner,
            channels,
        )


async def run(settings: Settings, services: Sequence[str], stop: asyncio.Event | None = None) -> None:
    """Runs services until a signal, or until `stop` is set.

    Args:
        settings: The settings.
        services: Names out of `SERVICES`.
        stop: Set by a test; signals set it too.

    Raises:
        What `open_worker` raises, HealthUnavailable, and ServiceDied.
    """
    stop = stop or asyncio.Event()
    stop_on_signals(stop)
    for server, because in unprotected(settings.database_url, settings.amqp_url).items():
        log.warning("not protected on the way", server=server, because=because)
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(open_worker(settings, stop=stop))
        running = [service for name in services for service in worker.build(name)]
        if settings.http_port:
            served = serving(settings.http_host, settings.http_port, worker.registry, worker.probes(stop))
            await stack.enter_async_context(served)
        log.info("running", services=[s.name for s in running], owner=worker.owner)
        await run_services([*running, *worker.background()], stop, grace=settings.shutdown_grace)
    log.info("stopped")
