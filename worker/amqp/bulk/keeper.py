"""Keeps a connection: opens the next when one is lost, and logs its loss once and its return once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

import structlog

from worker.amqp.bulk.connection import Events
from worker.amqp.bulk.errors import ConnectionLost
from worker.amqp.bulk.failures import classify
from worker.amqp.errors import RECONNECT_INTERVAL, BrokerUnreachable
from worker.domain.failures import Failure
from worker.lifecycle import Background

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger(__name__)

C = TypeVar("C", bound=Events)


class Keeper(Generic[C]):
    """Keeps one channel open until it is closed.

    Attributes:
        current: The channel that is open now; none during an outage.
    """

    def __init__(self, name: str, open_channel: Callable[[], Awaitable[C]]) -> None:
        """Takes what opens a channel.

        Args:
            name: Of the connection, for the log.
            open_channel: Raises BrokerUnreachable or ConnectionLost where it cannot.
        """
        self._name = name
        self._open_channel = open_channel
        self._keeping: Background | None = None
        self._attempted = 0.0
        self.current: C | None = None

    async def start(self) -> None:
        """Opens the first; what goes wrong with it is raised."""
        self.current = await self._attempt()
        self._keeping = Background(self._keep(self.current), f"keep {self._name}")

    async def watch(self) -> None:
        """Returns once it is closed; raises what keeping died of: what is lost then is not opened again.

        Raises:
            BrokerUnreachable, ConnectionLost: the broker refuses us, whatever we wait for.
        """
        if self._keeping is not None:
            await self._keeping.watch()

    async def close(self) -> None:
        """Closes the channel and opens no other."""
        if self._keeping is not None:
            await self._keeping.end()
        current, self.current = self.current, None
        if current is not None:
            await current.connection.close()

    async def _attempt(self) -> C:
        self._attempted = asyncio.get_running_loop().time()
        return await self._open_channel()

    async def _keep(self, current: C) -> None:
        while True:
            error = await asyncio.shield(current.connection.lost)
            self.current = None
            log.warning("connection to the broker lost", connection=self._name, because=str(error))
            current = await self._again()
            self.current = current
            log.info("connection to the broker is back", connection=self._name)
            # It may have been looked at before it was ours.
            current.flow()

    async def _again(self) -> C:
        """Tries until it works: without its broker a worker has nothing else to do.

        Raises:
            BrokerUnreachable, ConnectionLost: trying again is no use.
        """
        while True:
            # The last attempt may have been the one that opened the connection just lost: a queue that is
            # gone is no reason to connect without a pause.
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(self._attempted + RECONNECT_INTERVAL - now)
            try:
                return await self._attempt()
            except (BrokerUnreachable, ConnectionLost) as error:
                if classify(error) is Failure.BROKEN:
                    raise
                log.debug("still no connection to the broker", connection=self._name, because=str(error))
