"""Runs the services of one process until a signal."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

import structlog

from worker.bootstrap import open_worker
from worker.bootstrap_intake import open_intake
from worker.bootstrap_tracker import open_tracker
from worker.domain.servers import unprotected
from worker.lifecycle import run_services, stop_on_signals
from worker.web.console.service import ConsoleService
from worker.web.health import serving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prometheus_client import CollectorRegistry

    from worker.lifecycle import Service
    from worker.settings import Settings
    from worker.web.health import Probe

log = structlog.get_logger(__name__)


class _Process(Protocol):
    """What every composition root opens."""

    @property
    def registry(self) -> CollectorRegistry:
        """What `/metrics` shows."""

    def probes(self, stop: asyncio.Event) -> Mapping[str, Probe]:
        """Returns what `/health/ready` asks."""


async def run(settings: Settings, services: Sequence[str], stop: asyncio.Event | None = None) -> None:
    """Runs services until a signal, or until `stop` is set.

    Args:
        settings: The settings.
        services: Names of `SERVICES` and `ON_REQUEST`.
        stop: A test sets it; signals set it too.

    Raises:
        What `open_worker` raises, AddressUnavailable, and ServiceDied.
    """
    stop = stop or asyncio.Event()
    only_reads = set(services) == {"console"}
    async with AsyncExitStack() as stack:
        _begin(settings, stop)
        worker = await stack.enter_async_context(open_worker(settings, stop=stop, plan_each=only_reads))
        running = [service for name in services for service in worker.build(name)]
        for service in running:
            if isinstance(service, ConsoleService):
                await service.listen()
        told = {"services": [s.name for s in running], "owner": worker.owner}
        await _run(stack, settings, worker, [*running, *worker.background()], stop, told)


async def run_intake(settings: Settings, services: Sequence[str], stop: asyncio.Event | None = None) -> None:
    """Runs services of `INTAKES` until a signal, or until `stop` is set.

    Raises:
        What `open_intake` raises, AddressUnavailable, and ServiceDied.
    """
    stop = stop or asyncio.Event()
    async with AsyncExitStack() as stack:
        _begin(settings, stop)
        intake = await stack.enter_async_context(open_intake(settings, services, stop))
        await _run(stack, settings, intake, intake.services, stop, {"services": list(services)})


async def run_tracker(settings: Settings, stop: asyncio.Event | None = None) -> None:
    """Runs a tracker until a signal, or until `stop` is set.

    Raises:
        What `open_tracker` raises, AddressUnavailable, and ServiceDied.
    """
    stop = stop or asyncio.Event()
    async with AsyncExitStack() as stack:
        _begin(settings, stop)
        tracker = await stack.enter_async_context(open_tracker(settings, stop))
        told = {"services": ["tracker"], "host": settings.tracker_host, "port": tracker.server.port}
        await _run(stack, settings, tracker, tracker.services, stop, told)


def _begin(settings: Settings, stop: asyncio.Event) -> None:
    stop_on_signals(stop)
    for server, because in unprotected(settings.database_url, settings.amqp_url).items():
        log.warning("not protected on the way", server=server, because=because)
    for because in settings.conflicts:
        log.warning("settings do not fit together", because=because)
    for because in settings.misspelt:
        log.warning("variable ignored", because=because)


async def _run(
    stack: AsyncExitStack,
    settings: Settings,
    process: _Process,
    services: Sequence[Service],
    stop: asyncio.Event,
    told: Mapping[str, object],
) -> None:
    if settings.http_port:
        served = serving(settings.http_host, settings.http_port, process.registry, process.probes(stop))
        await stack.enter_async_context(served)
    log.info("running", **told)
    await run_services(services, stop, grace=settings.shutdown_grace)
    log.info("stopped")
