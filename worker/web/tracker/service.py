"""The tracker as a service: the web server, and what makes its events safe."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.web.server import WebServer
    from worker.web.tracker.outlet import Outlet


class TrackerService:
    """Serves until the stop; then finishes the open requests, and keeps their events."""

    name = "tracker"

    def __init__(self, server: WebServer, outlet: Outlet) -> None:
        """Takes its parts."""
        self._server = server
        self._outlet = outlet

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop`."""
        served = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._outlet.run(served))
            await self._server.run(stop)
            served.set()
