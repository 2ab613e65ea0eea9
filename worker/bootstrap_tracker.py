"""The composition root of the tracker, which also starts and works while broker and database are away."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector

from contracts import routing
from worker.amqp.bulk.errors import ConnectionLost
from worker.amqp.bulk.failures import classify as classify_broker
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.errors import BrokerUnreachable
from worker.db.failures import ERRORS, classify
from worker.db.links import LinkStore
from worker.db.pool import DatabaseUnreachable, open_database
from worker.domain.failures import Failure
from worker.domain.links import Links
from worker.lifecycle import pause, run_services, stop_on_signals, unless_stopped
from worker.links import open_keys
from worker.settings import SettingsError
from worker.telemetry.metrics import Metrics
from worker.web.health import serving
from worker.web.server import WebLimits, WebServer, listen
from worker.web.tracker.app import TrackerApp
from worker.web.tracker.catalog import Catalog
from worker.web.tracker.outlet import Outlet
from worker.web.tracker.service import TrackerService
from worker.web.tracker.spool import Spool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from worker.db.pool import Database
    from worker.lifecycle import Service
    from worker.settings import Settings
    from worker.web.health import Probe

log = structlog.get_logger(__name__)

_NAMED: Final = "SENDOFF_TRACKER_HOST and SENDOFF_TRACKER_PORT"
_AGAIN_SECONDS: Final = 2.0
_PATIENCE: Final = 0.1
"""Seconds in which the broker must confirm an event. A person waits for the answer."""
_BODY_BYTES: Final = 8_192
_CONNECTIONS: Final = 4_000
_IDLE_SECONDS: Final = 75.0
"""Longer than nginx keeps a connection that nobody uses (60 s), so that it never uses one that we close."""


@dataclass(frozen=True, slots=True)
class Tracker:
    """The parts of a tracker."""

    server: WebServer
    services: list[Service]
    spool: Spool
    registry: CollectorRegistry
    outlet: Outlet

    def probes(self, stop: asyncio.Event) -> dict[str, Probe]:
        """Returns the readiness probes: a tracker without broker or database still has work to do."""

        async def process() -> str:
            return "The process is stopping." if stop.is_set() else ""

        async def events() -> str:
            if self.outlet.reachable or not self.spool.full:
                return ""
            return "The broker does not take events, and the spool is full."

        return {"process": process, "events": events}


class _Reaching:
    """Connects to broker and database, and tries again as long as one of them is away."""

    name = "connections"

    def __init__(self, settings: Settings, publisher: BulkPublisher, metrics: Metrics, name: str) -> None:
        self._settings = settings
        self._publisher = publisher
        self._metrics = metrics
        self._name = name
        self.database: Database | None = None

    def store(self) -> LinkStore | None:
        return LinkStore(self.database) if self.database is not None else None

    async def try_both(self) -> bool:
        """Connects to what is not connected yet; returns whether nothing is left.

        Raises:
            BrokerUnreachable, DatabaseUnreachable, SchemaMismatch: trying again would not help.
        """
        both = await asyncio.gather(self._broker(), self._connected())
        return all(both)

    async def _broker(self) -> bool:
        if self._publisher.connected:
            return True
        try:
            await self._publisher.start()
        except (BrokerUnreachable, ConnectionLost) as error:
            if classify_broker(error) is Failure.BROKEN:
                raise
            log.warning("the tracker starts without the broker", because=str(error))
        return self._publisher.connected

    async def _connected(self) -> bool:
        if self.database is not None:
            return True
        s = self._settings
        try:
            database = await open_database(
                s.database_url,
                size=s.database_pool,
                connect_timeout=s.connect_timeout,
                command_timeout=s.command_timeout,
                application=self._name,
                on_away=self._metrics.database_failures.inc,
            )
        except DatabaseUnreachable as error:
            if error.__cause__ is not None and classify(error.__cause__) is Failure.BROKEN:
                raise
            log.warning("the tracker starts without the database", because=str(error))
            return False
        try:
            await database.check()
        except ERRORS as error:
            await database.close()
            log.warning("the tracker starts without the database", because=repr(error))
            return False
        except BaseException:
            await database.close()
            raise
        self.database = database
        return True

    async def run(self, stop: asyncio.Event) -> None:
        """Tries until both are connected, and then watches the connection to the broker."""
        while not await unless_stopped(stop, self.try_both()):
            if await pause(stop, _AGAIN_SECONDS):
                return
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._publisher.watch())
            await stop.wait()
            watching.cancel()

    async def close(self) -> None:
        await self._publisher.close()
        if self.database is not None:
            await self.database.close()


@asynccontextmanager
async def open_tracker(settings: Settings, stop: asyncio.Event) -> AsyncIterator[Tracker]:
    """Opens the parts of a tracker, and closes them when the block ends.

    Raises:
        SettingsError: A setting is missing, or the keys cannot be read.
        SpoolUnusable, AddressUnavailable: The folder cannot be used, or nothing can listen at the address.
        BrokerUnreachable, DatabaseUnreachable, SchemaMismatch: A server refuses us, or is not set up. We do
            not wait for one that is away.
    """
    if not settings.tracker_url:
        raise SettingsError("The tracker needs its public address: set SENDOFF_TRACKER_URL.")
    keys = open_keys(settings)
    links = Links(settings.tracker_url, keys)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    metrics = Metrics.create(registry)
    name = f"sendoff tracker {socket.gethostname()}:{os.getpid()}"
    spool = await asyncio.to_thread(Spool, Path(settings.tracker_spool), settings.tracker_spool_size)
    publisher = BulkPublisher(
        settings.amqp_url,
        name=name,
        window=settings.publish_window,
        timeout=settings.command_timeout,
        connect_timeout=settings.connect_timeout,
        stop=stop,
    )
    metrics.broker_connected.set_function(lambda: publisher.connected)
    async with AsyncExitStack() as stack:
        stack.callback(spool.close)
        reaching = _Reaching(settings, publisher, metrics, name)
        stack.push_async_callback(reaching.close)
        await reaching.try_both()
        listening = await listen(
            settings.tracker_host,
            settings.tracker_port,
            named="SENDOFF_TRACKER_HOST and SENDOFF_TRACKER_PORT",
        )
        exchange = routing.Names(settings.queue_prefix).exchange(routing.TRACKING)
        outlet = Outlet(publisher, exchange, spool, metrics, patience=_PATIENCE)
        app = TrackerApp(links, keys, settings.tracker_url, Catalog(reaching.store), outlet, metrics)
        limits = WebLimits(
            body=_BODY_BYTES,
            connections=_CONNECTIONS,
            idle=_IDLE_SECONDS,
            grace=settings.shutdown_grace / 2,
        )
        server = WebServer("tracker", app, listening, limits)
        yield Tracker(server, [TrackerService(server, outlet), reaching], spool, registry, outlet)


async def run_tracker(settings: Settings, stop: asyncio.Event | None = None) -> None:
    """Runs a tracker until a signal, or until `stop` is set.

    Raises:
        What `open_tracker` raises, AddressUnavailable, and ServiceDied.
    """
    stop = stop or asyncio.Event()
    stop_on_signals(stop)
    async with AsyncExitStack() as stack:
        tracker = await stack.enter_async_context(open_tracker(settings, stop))
        if settings.http_port:
            served = serving(settings.http_host, settings.http_port, tracker.registry, tracker.probes(stop))
            await stack.enter_async_context(served)
        log.info("running", services=["tracker"], host=settings.tracker_host, port=tracker.server.port)
        await run_services(tracker.services, stop, grace=settings.shutdown_grace)
    log.info("stopped")
