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
from worker.amqp.bulk.publisher import BulkPublisher
from worker.db.failures import ERRORS, classify
from worker.db.links import LinkStore
from worker.db.pool import DatabaseUnreachable, open_database
from worker.domain.failures import Failure
from worker.domain.links import Links
from worker.lifecycle import Watching, pause, unless_stopped
from worker.links import open_keys
from worker.settings import SettingsError
from worker.telemetry.metrics import Metrics
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


class _Database:
    """Connects to the database, and tries again as long as it is away."""

    name = "the connection to the database"

    def __init__(self, settings: Settings, metrics: Metrics, name: str) -> None:
        self._settings = settings
        self._metrics = metrics
        self._name = name
        self._opened: Database | None = None

    def store(self) -> LinkStore | None:
        return LinkStore(self._opened) if self._opened is not None else None

    async def look(self) -> bool:
        """Connects if it is not connected yet; returns whether it is.

        Raises:
            DatabaseUnreachable, SchemaMismatch: trying again would not help.
        """
        if self._opened is not None:
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
        self._opened = database
        return True

    async def run(self, stop: asyncio.Event) -> None:
        """Tries until it is connected, and then waits for the stop."""
        while not await unless_stopped(stop, self.look()):
            if await pause(stop, _AGAIN_SECONDS):
                return
        await stop.wait()

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()


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
        database = _Database(settings, metrics, name)
        stack.push_async_callback(database.close)
        stack.push_async_callback(publisher.close)
        await asyncio.gather(publisher.start(patient=True), database.look())
        listening = await listen(
            settings.tracker_host,
            settings.tracker_port,
            named="SENDOFF_TRACKER_HOST and SENDOFF_TRACKER_PORT",
            shared=True,
        )
        exchange = routing.Names(settings.queue_prefix).exchange(routing.TRACKING)
        outlet = Outlet(publisher, exchange, spool, metrics, patience=_PATIENCE)
        app = TrackerApp(links, keys, settings.tracker_url, Catalog(database.store), outlet, metrics)
        limits = WebLimits(
            body=_BODY_BYTES,
            connections=_CONNECTIONS,
            idle=_IDLE_SECONDS,
            grace=settings.shutdown_grace / 2,
        )
        server = WebServer("tracker", app, listening, limits)
        watching = Watching("the connection that publishes", publisher.watch)
        services: list[Service] = [TrackerService(server, outlet), database, watching]
        yield Tracker(server, services, spool, registry, outlet)
