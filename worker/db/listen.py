"""NOTIFY from the database: wakes a service the moment that there is something for it to do."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from worker.db.pool import OUT_OF_REACH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PAGES: Final = "sendoff_pages"
"""There are new pages to publish."""
EVENTS: Final = "sendoff_events"
"""There are new events to publish."""


class Wakener:
    """Listens on a connection of its own; while that is lost, waiting is mere polling."""

    def __init__(self, url: str, channel: str, *, timeout: float) -> None:
        """Takes the database's address, what to listen to, and the seconds that connecting may take."""
        self._url = url
        self._channel = channel
        self._timeout = timeout
        self._woken = asyncio.Event()
        self._connection: Any = None

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listens while the block runs."""
        try:
            yield
        finally:
            if self._connection is not None:
                with contextlib.suppress(*OUT_OF_REACH):
                    await self._connection.close(timeout=self._timeout)

    async def wait(self, stop: asyncio.Event, seconds: float) -> None:
        """Returns when somebody notified, `stop` was set, or the time is over: then look anyway."""
        if self._connection is None or self._connection.is_closed():
            await self._listen()
        waits = [asyncio.create_task(self._woken.wait()), asyncio.create_task(stop.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self._woken.clear()

    async def _listen(self) -> None:
        with contextlib.suppress(*OUT_OF_REACH, asyncpg.PostgresError):
            self._connection = await asyncpg.connect(
                self._url, timeout=self._timeout, server_settings={"application_name": "sendoff wakener"}
            )
            await self._connection.add_listener(self._channel, lambda *_: self._woken.set())
            # What was committed before we listened woke nobody.
            self._woken.set()
