"""The connections of one process: to the database, and to the broker over both transports."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import structlog

from contracts import routing
from worker.amqp import topology
from worker.amqp.bulk.consumer import BulkConsumer
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.pika.connection import open_broker
from worker.amqp.pika.consumer import PikaConsumer
from worker.amqp.pika.publisher import PikaPublisher
from worker.amqp.routes import Routes
from worker.db import server
from worker.db.identity import recogniser
from worker.db.pool import DatabaseUnreachable, open_database
from worker.domain.clocks import disagreement
from worker.domain.servers import postgres_hosts
from worker.domain.standbys import doubt

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from contracts.routing import Names
    from worker.amqp.messages import Consumer, Publisher
    from worker.amqp.pika.connection import Broker
    from worker.db.pool import Database
    from worker.settings import Settings
    from worker.telemetry.metrics import Metrics


log = structlog.get_logger(__name__)


class Connections(NamedTuple):
    """The open connections."""

    db: Database
    broker: Broker
    publisher: Publisher
    """Publishes answers, events and dead messages, over aio-pika."""
    bulk_publisher: Publisher
    """Publishes what is one message for each recipient."""
    routes: Routes
    """Keeps the exchanges and queues there."""


@asynccontextmanager
async def open_connections(
    settings: Settings,
    names: Names,
    name: str,
    metrics: Metrics,
    stop: asyncio.Event,
    *,
    plan_each: bool = False,
) -> AsyncIterator[Connections]:
    """Connects to all servers, checks them, and closes all connections when the block ends.

    Args:
        settings: The settings.
        names: The installation's names.
        name: What operators see in the servers' lists of connections.
        metrics: Where outages are counted.
        stop: After it is set, nothing waits for a database or a broker that is away.
        plan_each: As for `worker.db.pool.open_database`.

    Raises:
        DatabaseUnreachable, BrokerUnreachable: there is no server at the address.
        DatabaseUnreachable: also where a failover can lose claims, and the settings refuse that.
        SchemaMismatch, TopologyMismatch: the server is not set up, or is set up for another version.
    """
    async with AsyncExitStack() as stack:
        db = await open_database(
            settings.database_url,
            size=settings.database_pool,
            connect_timeout=settings.connect_timeout,
            command_timeout=settings.command_timeout,
            application=name,
            stop=stop,
            on_away=metrics.database_failures.inc,
            on_busy=lambda doing: metrics.database_busy.labels(doing).inc,
            plan_each=plan_each,
            recognise=recogniser(settings.after_failover),
        )
        stack.push_async_callback(db.close)
        await db.check()
        await _look_at_server(db, settings)
        metrics.database_connections.labels("busy").set_function(lambda: db.busy)
        metrics.database_connections.labels("idle").set_function(lambda: db.idle)
        metrics.database_connections_most.set(settings.database_pool)
        broker = await open_broker(settings.amqp_url, name=name, timeout=settings.connect_timeout)
        stack.push_async_callback(broker.close)
        await topology.check_set_up(broker.consuming, names, settings.channels, settings.send_shards)
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
        routes = Routes(broker.consuming, names, settings.channels, settings.send_shards)
        yield Connections(db, broker, publisher, bulk_publisher, routes)


async def _look_at_server(db: Database, settings: Settings) -> None:
    """Says what of the server will trouble us later.

    Raises:
        DatabaseUnreachable: a failover can lose claims, and the settings refuse that.
    """
    because = doubt(await server.durability(db), len(postgres_hosts(settings.database_url)))
    if because and settings.async_standby == "refuse":
        raise DatabaseUnreachable(f"{because} SENDOFF_ASYNC_STANDBY=warn starts all the same.")
    if because:
        log.warning("a failover can lose claims", because=because)
    if because := disagreement(await server.ahead(db)):
        log.warning("the clocks differ", because=because)


def open_bulk_consumer(
    settings: Settings, broker: Broker, name: str, queue: str, prefetch: int, *, sends: bool
) -> Consumer:
    """Makes a consumer for a queue with one message per recipient.

    Args:
        settings: The settings.
        broker: The connection for aio-pika, where the settings say that.
        name: What operators see in the broker's list of connections.
        queue: The full name of the queue.
        prefetch: The most messages in hand.
        sends: Whether it is a send queue, which may have shards, and messages with a priority.
    """
    first, *others = routing.sharded(queue, settings.send_shards if sends else 1)
    if settings.transport == "aio-pika":
        return PikaConsumer(broker.consuming, first, prefetch=prefetch, by_priority=sends, shards=others)
    return BulkConsumer(
        settings.amqp_url,
        first,
        name=name,
        prefetch=prefetch,
        connect_timeout=settings.connect_timeout,
        by_priority=sends,
        shards=others,
    )
