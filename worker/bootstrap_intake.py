"""The composition root of what others bring us: returned mail, and the calls of mail providers.

Both need the broker alone, so such a process has no access to the database. It starts and stays up while the
broker is away: then it answers that the mail or the call is to come again.
"""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, ProcessCollector

from contracts import routing
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.prompt import PromptPublisher
from worker.lifecycle import Watching
from worker.returned.keeping import Kept
from worker.returned.opening import open_references, open_sources
from worker.services.returned import ReturnedParts, ReturnedService
from worker.telemetry.loop import LoopLag
from worker.telemetry.metrics import Metrics
from worker.web.webhooks.service import WebhookService

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Sequence

    from worker.lifecycle import Service
    from worker.settings import Settings
    from worker.web.health import Probe

INTAKES: Final = ("returned", "webhooks")
"""The services by name. One process may run both."""


@dataclass(frozen=True, slots=True)
class Intake:
    """The parts of one process."""

    services: Sequence[Service]
    registry: CollectorRegistry
    publisher: PromptPublisher

    def probes(self, stop: asyncio.Event) -> dict[str, Probe]:
        """Returns the readiness probes, by part."""

        async def process() -> str:
            return "The process is stopping." if stop.is_set() else ""

        async def broker() -> str:
            return self.publisher.trouble

        return {"process": process, "broker": broker}


@asynccontextmanager
async def open_intake(settings: Settings, names: Sequence[str], stop: asyncio.Event) -> AsyncIterator[Intake]:
    """Opens the parts of a process, and closes them when the block ends.

    Args:
        settings: The settings.
        names: Those of `INTAKES` that run.
        stop: Set when the process stops.

    Raises:
        SettingsError: A setting is missing, or a file of the settings cannot be read.
        BrokerUnreachable: The broker refuses us. We do not wait for one that is away.
    """
    s = settings
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    metrics = Metrics.create(registry)
    bulk = BulkPublisher(
        s.amqp_url,
        name=f"sendoff {'+'.join(names)} {socket.gethostname()}:{os.getpid()}",
        window=s.publish_window,
        timeout=s.command_timeout,
        connect_timeout=s.connect_timeout,
        stop=stop,
    )
    metrics.broker_connected.set_function(lambda: bulk.connected)
    publisher = PromptPublisher(bulk, seconds=s.connect_timeout)
    exchanges = routing.Names(s.queue_prefix)
    build: dict[str, Callable[[], Service]] = {
        "returned": lambda: _returned(s, publisher, exchanges, metrics),
        "webhooks": lambda: WebhookService(s, publisher, exchanges, metrics),
    }
    services = [build[name]() for name in names]
    await bulk.start(patient=True)
    try:
        watching = Watching("the connection that publishes", bulk.watch)
        yield Intake([*services, watching, LoopLag(metrics)], registry, publisher)
    finally:
        await bulk.close()


def _returned(
    settings: Settings, publisher: PromptPublisher, names: routing.Names, metrics: Metrics
) -> Service:
    references = open_references(settings)
    count = metrics.returned_mails
    parts = ReturnedParts(
        sources=open_sources(settings, references, lambda outcome: count.labels(outcome).inc()),
        references=references,
        kept=Kept(settings.returned_folder),
        publisher=publisher,
        names=names,
        metrics=metrics,
    )
    return ReturnedService(parts)
