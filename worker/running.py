"""Runs the services of one process until a signal."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import structlog

from worker.bootstrap import open_worker
from worker.domain.servers import unprotected
from worker.lifecycle import run_services, stop_on_signals
from worker.web.console.service import ConsoleService
from worker.web.health import serving

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.settings import Settings

log = structlog.get_logger(__name__)


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
    stop_on_signals(stop)
    for server, because in unprotected(settings.database_url, settings.amqp_url).items():
        log.warning("not protected on the way", server=server, because=because)
    for because in settings.conflicts:
        log.warning("settings do not fit together", because=because)
    for because in settings.misspelt:
        log.warning("variable ignored", because=because)
    async with AsyncExitStack() as stack:
        only_reads = set(services) == {"console"}
        worker = await stack.enter_async_context(open_worker(settings, stop=stop, plan_each=only_reads))
        running = [service for name in services for service in worker.build(name)]
        for service in running:
            if isinstance(service, ConsoleService):
                await service.listen()
        if settings.http_port:
            served = serving(settings.http_host, settings.http_port, worker.registry, worker.probes(stop))
            await stack.enter_async_context(served)
        log.info("running", services=[s.name for s in running], owner=worker.owner)
        await run_services([*running, *worker.background()], stop, grace=settings.shutdown_grace)
    log.info("stopped")
