"""Listens to NOTIFY from the database, to wake a service when there is work for it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import structlog

from worker.db.connecting import tls
from worker.db.failures import ERRORS
from worker.domain.failures import Stopped
from worker.lifecycle import unless_stopped, wait_any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = structlog.get_logger(__name__)

_FAREWELL_SECONDS: Final = 1

PAGES: Final = "sendoff_pages"
"""There are new pages to publish."""
EVENTS: Final = "sendoff_events"
"""There are new events to publish."""


class Wakener:
    """Listens on a connection of its own. While the connection is lost, it polls, and the log says so."""

    def __init__(self, url: str, channel: str, *, timeout: float) -> None:
        """Takes the database's address, the channel of NOTIFY, and the seconds that connecting may take."""
        self._url = url
        self._channel = channel
        self._timeout = timeout
        self._woken = asyncio.Event()
        self._connection: Any = None
        self._polling = False

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listens while the block runs."""
        await self._listen()  # here, since a wait beside other work is cancelled sooner than it connects
        try:
            yield
        finally:
            if self._connection is not None:
                await _close(self._connection)

    async def wait(self, stop: asyncio.Event, seconds: float) -> None:
        """Returns when a notification came, `stop` was set, or the time is over.

        Then look for work in any case.
        """
        if self._connection is None or self._connection.is_closed():
            try:
                await unless_stopped(stop, self._listen())
            except Stopped:
                return
        await wait_any(self._woken, stop, seconds=seconds)
        self._woken.clear()

    async def _listen(self) -> None:
        try:
            self._connection = await self._subscribed()
        except ERRORS as error:
            if not self._polling:
                because = str(error) or type(error).__name__
                log.warning("not woken by the database, polling", channel=self._channel, because=because)
            self._polling = True
        else:
            if self._polling:
                log.info("woken by the database again", channel=self._channel)
            self._polling = False

    async def _subscribed(self) -> asyncpg.Connection:
        connection = await asyncpg.connect(
            self._url,
            ssl=tls(self._url),
            timeout=self._timeout,
            command_timeout=self._timeout,
            server_settings={"application_name": "sendoff wakener"},
        )
        try:
            await connection.add_listener(self._channel, lambda *_: self._woken.set())
        except BaseException:
            connection.terminate()
            raise
        # A commit before we listened woke nobody, so look once.
        self._woken.set()
        return connection


async def _close(connection: asyncpg.Connection) -> None:
    try:
        await connection.close(timeout=_FAREWELL_SECONDS)
    except ERRORS as error:  # a failed close does not matter
        log.debug("the database did not say goodbye", because=str(error))
