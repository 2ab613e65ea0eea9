"""Keeps a connection open: opens a new one when one is lost, and logs the loss and the return once."""

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
    """Keeps one AMQP channel open until `close`.

    Attributes:
        current: The channel that is open now; None during an outage.
    """

    def __init__(self, name: str, open_channel: Callable[[], Awaitable[C]]) -> None:
        """Takes the function that opens a channel.

        Args:
            name: The connection's name, for the log.
            open_channel: Opens a channel, or raises BrokerUnreachable or ConnectionLost.
        """
        self._name = name
        self._open_channel = open_channel
        self._keeping: Background | None = None
        self._attempted = 0.0
        self.current: C | None = None

    async def start(self, *, patient: bool = False) -> None:
        """Opens the first channel.

        Args:
            patient: Whether a broker that is away is no error: then it is tried again and again.

        Raises:
            BrokerUnreachable, ConnectionLost: there is no broker, or it refuses us.
        """
        try:
            self.current = await self._attempt()
        except (BrokerUnreachable, ConnectionLost) as error:
            if not patient or classify(error) is Failure.BROKEN:
                raise
            log.warning("started without the broker", connection=self._name, because=str(error))
        self._keeping = Background(self._keep(self.current), f"keep {self._name}")

    async def watch(self) -> None:
        """Returns when it is closed; raises the error after which no channel is opened again.

        Raises:
            BrokerUnreachable, ConnectionLost: the broker refuses us permanently.
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

    async def _keep(self, current: C | None) -> None:
        while True:
            if current is not None:
                error = await asyncio.shield(current.connection.lost)
                self.current = None
                log.warning("connection to the broker lost", connection=self._name, because=str(error))
            current = await self._again()
            self.current = current
            log.info("connection to the broker is back", connection=self._name)
            # Somebody may have read it before we set it.
            current.flow()

    async def _again(self) -> C:
        """Tries until it works: a worker can do nothing without its broker.

        Raises:
            BrokerUnreachable, ConnectionLost: another attempt would fail too.
        """
        while True:
            # The last attempt may have opened the connection that was just lost, for example when a queue was
            # deleted. Without this pause we would connect in a tight loop.
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(self._attempted + RECONNECT_INTERVAL - now)
            try:
                return await self._attempt()
            except (BrokerUnreachable, ConnectionLost) as error:
                if classify(error) is Failure.BROKEN:
                    raise
                log.debug("still no connection to the broker", connection=self._name, because=str(error))
