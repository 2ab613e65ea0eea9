"""The composition root: the only place where connections become services."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector

from contracts import routing
from worker import readiness
from worker.amqp import topology
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.dead import DeadQueue
from worker.amqp.pika.consumer import PikaConsumer
from worker.amqp.routes import KeepingPublisher
from worker.auth.authority import Authority
from worker.auth.tokens import open_verifier
from worker.channels.registry import CHANNELS
from worker.connections import Connections, open_bulk_consumer, open_connections
from worker.db import listen
from worker.db.accounts import Accounts
from worker.db.alerts import Alerts
from worker.db.audiences import Audiences
from worker.db.breaker import Breaker
from worker.db.deliveries import Deliveries, DeliveryContents
from worker.db.events import Outbox
from worker.db.executions import Executions
from worker.db.flow import Flow
from worker.db.pages import Pages
from worker.db.starts import Starts
from worker.db.stats import Statistics
from worker.db.suppression import Suppression
from worker.db.tracking import TrackingLog
from worker.domain.approval import ApprovalRule
from worker.domain.breaker import BreakerLimits
from worker.domain.retry import Retries
from worker.duties import suppression_duties
from worker.lifecycle import Watching
from worker.services.claims import PREFETCH as CLAIMS_PREFETCH
from worker.services.claims import ClaimsLimits, ClaimsParts, ClaimsService
from worker.services.commands import PREFETCH, ConfirmLimits, ConfirmParts, ConfirmService
from worker.services.events import EventsLimits, EventsParts, EventsService
from worker.services.fanout import FanoutLimits, FanoutParts, FanoutService
from worker.services.flow import FlowParts, FlowService
from worker.services.results import ResultsLimits, ResultsParts, ResultsService
from worker.services.schedule import ScheduleLimits, ScheduleParts, ScheduleService
from worker.services.send import SendLimits, SendParts, SendService
from worker.services.stats import StatsLimits, StatsParts, StatsService
from worker.services.tracking import TrackingLimits, TrackingParts, TrackingService, open_machines
from worker.telemetry.loop import LoopLag
from worker.telemetry.metrics import Metrics
from worker.web.console.service import ConsoleService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from worker.amqp.messages import Consumer, Publisher
    from worker.amqp.pika.connection import Broker
    from worker.amqp.routes import Routes
    from worker.channels.protocol import Kind
    from worker.db.pool import Database
    from worker.lifecycle import Service
    from worker.settings import Settings
    from worker.web.health import Probe

log = structlog.get_logger(__name__)

SERVICES: Final = (
    "confirm",
    "fanout",
    "send",
    "claims",
    "results",
    "tracking",
    "stats",
    "schedule",
    "events",
)
"""The services by name, as `sendoff run` takes them."""
ON_REQUEST: Final = ("console",)
"""Those that run only where they are named."""


@dataclass(frozen=True, slots=True)
class Worker:
    """The parts of one process."""

    settings: Settings
    names: routing.Names
    broker: Broker
    publisher: Publisher
    bulk_publisher: Publisher
    routes: Routes
    stop: asyncio.Event
    db: Database
    accounts: Accounts
    registry: CollectorRegistry
    metrics: Metrics
    owner: str
    channels: Mapping[str, Kind]
    consumers: list[Consumer] = field(default_factory=list)
    """The consumers of the services that were built. The broker must know each of them."""
    senders: list[SendService] = field(default_factory=list)

    def build(self, name: str) -> list[Service]:
        """Builds the services of a name: one, or for *send* one per channel."""
        builders: dict[str, Callable[[], list[Service]]] = {
            "confirm": lambda: [self._confirm()],
            "fanout": lambda: [self._fanout()],
            "send": lambda: [s for c in self.settings.channels if c in self.channels for s in self._send(c)],
            "claims": lambda: [self._claims()],
            "results": lambda: [self._results()],
            "tracking": lambda: [self._tracking()],
            "stats": lambda: [self._stats()],
            "schedule": lambda: [self._schedule()],
            "events": lambda: [self._events()],
            "console": lambda: [ConsoleService(self.settings, self.db)],
        }
        return builders[name]()

    def background(self) -> list[Service]:
        """Returns the services that always run too. The process stops if one of them ends."""
        always: list[Service] = [self.routes, LoopLag(self.metrics)]
        if isinstance(self.bulk_publisher, BulkPublisher):
            always.append(Watching("the connection that publishes", self.bulk_publisher.watch))
        return always

    def probes(self, stop: asyncio.Event) -> dict[str, Probe]:
        """Returns the readiness probes, by part."""
        connections = Connections(self.db, self.broker, self.publisher, self.bulk_publisher, self.routes)
        return readiness.probes(stop, connections, self.consumers, self.senders)

    def _consumer(self, queue: str, prefetch: int) -> Consumer:
        consumer = PikaConsumer(self.broker.consuming, self.names.queue(queue), prefetch=prefetch)
        self.consumers.append(consumer)
        return consumer

    def _bulk_consumer(self, queue: str, prefetch: int) -> Consumer:
        """Returns a consumer for a queue with one message per recipient."""
        consumer = self._open_bulk_consumer(queue, prefetch)
        self.consumers.append(consumer)
        return consumer

    def _open_bulk_consumer(self, queue: str, prefetch: int, *, sends: bool = False) -> Consumer:
        name, full = f"sendoff {self.owner} consume", self.names.queue(queue)
        return open_bulk_consumer(self.settings, self.broker, name, full, prefetch, sends=sends)

    def _keeping(self, publisher: Publisher) -> Publisher:
        """Returns a publisher for what stands nowhere else: it waits for a queue that is missing."""
        return KeepingPublisher(publisher, self.routes, self.stop)

    def _dead(self) -> DeadQueue:
        return DeadQueue(self._keeping(self.publisher), self.names, self.settings.channels, self.metrics)

    def _confirm(self) -> Service:
        parts = ConfirmParts(
            consumer=self._consumer(routing.COMMANDS_QUEUE, PREFETCH),
            publisher=self.publisher,
            dead=self._dead(),
            executions=Executions(self.db),
            retrying=self.db,
            authority=Authority(frozenset(self.settings.publishers), open_verifier(self.settings)),
            metrics=self.metrics,
        )
        s = self.settings
        limits = ConfirmLimits(
            page_size=s.page_size,
            approvals=ApprovalRule(s.second_approval_above, timedelta(seconds=s.second_approval_within)),
            at_once=min(max(s.database_pool // 4, 1), 4),
            blocks=s.preflight_blocks,
        )
        return ConfirmService(parts, limits)

    def _fanout(self) -> Service:
        s = self.settings
        parts = FanoutParts(
            publisher=self.bulk_publisher,
            routes=self.routes,
            depth=topology.QueueDepth(self.broker.consuming, s.send_shards),
            wakener=listen.Wakener(s.database_url, listen.PAGES, timeout=s.connect_timeout),
            retrying=self.db,
            pages=Pages(self.db),
            names=self.names,
            metrics=self.metrics,
        )
        limits = FanoutLimits(
            channels=s.channels,
            owner=self.owner,
            lease=s.page_lease,
            look_after=s.page_look_after,
            high_water=s.send_queue_high_water,
            ahead=s.send_queue_seconds,
            page_size=s.page_size,
            small=s.small_delivery,
            shards=s.send_shards,
            idle=s.tick,
        )
        return FanoutService(parts, limits)

    def _send(self, channel_name: str) -> list[Service]:
        s = self.settings
        channel = self.channels[channel_name].open(s)
        # A sender takes no more messages than it needs soon: other processes get the others.
        prefetch = min(2 * s.send_batch, 2_000) if channel.concurrency is None else s.send_batch
        sender = SendService(
            SendParts(
                channel_name=channel_name,
                channel=channel,
                open_consumer=lambda: self._open_bulk_consumer(
                    routing.send_queue(channel_name), prefetch, sends=True
                ),
                publisher=self._keeping(self.bulk_publisher),
                exchange=self.names.exchange(routing.RESULTS),
                dead=self._dead(),
                claims=self.accounts,
                sizes=Audiences(self.accounts, self.db),
                contents=DeliveryContents(self.db),
                database=self.db,
                metrics=self.metrics,
            ),
            SendLimits(
                batch=s.send_batch,
                age=s.send_batch_age,
                claim_lease=s.claim_lease,
                result_lease=s.result_lease,
                patience=s.relay_patience,
                unclaimed=max(prefetch // 2, 1),  # the other half is for the others
            ),
        )
        self.senders.append(sender)
        if channel.lanes is None:
            return [sender]
        parts = FlowParts(channel_name, channel.lanes, self.owner, Flow(self.db), self.db)
        return [sender, FlowService(parts)]

    def _claims(self) -> Service:
        s = self.settings
        parts = ClaimsParts(
            consumer=self._consumer(routing.CLAIMS_QUEUE, CLAIMS_PREFETCH),
            publisher=self.publisher,
            answers=topology.AnswerQueues(self.broker.consuming),
            dead=self._dead(),
            claims=self.accounts,
            deliveries=Deliveries(self.db),
            retrying=self.db,
            metrics=self.metrics,
        )
        at_once = min(max(s.database_pool // 4, 1), 4)
        return ClaimsService(parts, ClaimsLimits(channels=s.channels, lease=s.result_lease, at_once=at_once))

    def _results(self) -> Service:
        s = self.settings
        parts = ResultsParts(
            consumers=[self._bulk_consumer(q, min(2 * s.result_batch, 2_000)) for q in routing.RESULT_QUEUES],
            dead=self._dead(),
            retrying=self.db,
            recorder=self.accounts,
            sizes=Audiences(self.accounts, self.db),
            breaker=Breaker(self.db),
            finisher=Deliveries(self.db),
            metrics=self.metrics,
        )
        limits = ResultsLimits(
            batch=s.result_batch,
            age=s.result_batch_age,
            breaker=BreakerLimits(
                s.breaker_minimum,
                s.breaker_hard_bounce_pct,
                s.breaker_error_pct,
                s.breaker_refused_pct,
                s.breaker_domain_refused_pct,
            ),
            retries=Retries(s.retry_delays, s.max_attempts),
        )
        return ResultsService(parts, limits)

    def _tracking(self) -> Service:
        s = self.settings
        parts = TrackingParts(
            consumer=self._bulk_consumer(routing.TRACKING_QUEUE, min(2 * s.tracking_batch, 2_000)),
            dead=self._dead(),
            retrying=self.db,
            recorder=TrackingLog(self.db),
            sizes=Audiences(self.accounts, self.db),
            machines=open_machines(s),
            metrics=self.metrics,
        )
        return TrackingService(parts, TrackingLimits(batch=s.tracking_batch, age=s.tracking_batch_age))

    def _stats(self) -> Service:
        s = self.settings
        parts = StatsParts(
            consumer=self._consumer(routing.STATS_QUEUE, 1_000),
            publisher=self.publisher,
            dead=self._dead(),
            statistics=Statistics(self.db),
            retrying=self.db,
            metrics=self.metrics,
        )
        limits = StatsLimits(
            deadline=min(s.stats_deadline, s.command_timeout), at_once=max(s.database_pool // 4, 1)
        )
        return StatsService(parts, limits)

    def _events(self) -> Service:
        s = self.settings
        parts = EventsParts(
            outbox=Outbox(self.db),
            wakener=listen.Wakener(s.database_url, listen.EVENTS, timeout=s.connect_timeout),
            retrying=self.db,
            publisher=self._keeping(self.publisher),
            names=self.names,
            metrics=self.metrics,
        )
        return EventsService(parts, EventsLimits(idle=s.tick, lease=s.event_lease))

    def _schedule(self) -> Service:
        s = self.settings
        parts = ScheduleParts(
            retrying=self.db,
            deliveries=Deliveries(self.db),
            starts=Starts(self.db),
            accounts=self.accounts,
            pages=Pages(self.db),
            alerts=Alerts(self.db),
            more=suppression_duties(Suppression(self.db)),
            depth=topology.QueueDepth(self.broker.consuming, s.send_shards),
            names=self.names,
            metrics=self.metrics,
        )
        limits = ScheduleLimits(
            tick=s.tick,
            result_lease=s.result_lease,
            own_channels=self.channels.keys(),
            look_after=s.page_look_after,
            redelivery_after=s.redelivery_after,
            alert_interval=s.alert_interval,
            # Longer than it takes to find the database too busy: three timeouts, and ten seconds.
            deadline=4 * s.command_timeout + 10,
        )
        return ScheduleService(parts, limits)


@asynccontextmanager
async def open_worker(
    settings: Settings,
    channels: Mapping[str, Kind] = CHANNELS,
    stop: asyncio.Event | None = None,
    *,
    plan_each: bool = False,
) -> AsyncIterator[Worker]:
    """Connects to all servers, checks them, and closes all connections when the block ends.

    Args:
        settings: The settings.
        channels: The channels that we send over; a test gives its own.
        stop: After it is set, nothing waits for a database or a broker that is away.
        plan_each: As for `worker.db.pool.open_database`.

    Raises:
        DatabaseUnreachable, BrokerUnreachable: there is no server at the address.
        SchemaMismatch, TopologyMismatch: the server is not set up, or is set up for another version.
    """
    owner = f"{socket.gethostname()}:{os.getpid()}"
    names = routing.Names(settings.queue_prefix)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    metrics = Metrics.create(registry, settings.channels)
    stop = stop or asyncio.Event()
    async with open_connections(
        settings, names, f"sendoff {owner}", metrics, stop, plan_each=plan_each
    ) as connections:
        yield Worker(
            settings,
            names,
            connections.broker,
            connections.publisher,
            connections.bulk_publisher,
            connections.routes,
            stop,
            connections.db,
            Accounts(connections.db),
            registry,
            metrics,
            owner,
            channels,
        )
