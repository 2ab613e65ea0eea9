"""Keeps the exchanges, queues and bindings there while services run, and what is published until they are.

An operator may delete a queue by mistake. Then this process declares it again, if its broker user may. If
not, services wait for “sendoff migrate”. They keep what is in hand, and readiness says what is missing.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from worker.amqp import topology
from worker.amqp.errors import RECONNECT_INTERVAL, BrokerForbids, BrokerUnreachable
from worker.amqp.messages import Unroutable
from worker.domain.failures import Stopped
from worker.lifecycle import pause, unless_stopped, wait_any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_pika.abc import AbstractConnection

    from contracts.routing import Names
    from worker.amqp.messages import Outgoing, Publisher

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 5
"""Between two looks. A look asks the broker for each exchange and queue: about 15 short questions."""

_KEPT: Final = "What is in hand is kept, and goes on when it is there again."


class Routes:
    """Looks whether everything is there, and declares it again. A service of each process."""

    name = "routes"

    def __init__(
        self, connection: AbstractConnection, names: Names, channels: Sequence[str], shards: int = 1
    ) -> None:
        """Takes the connection, the installation's names and channels, and the shards of each send queue."""
        self._shards = shards
        self._connection = connection
        self._names = names
        self._channels = channels
        self._asked = asyncio.Event()
        self._reported: tuple[Unroutable, float] | None = None
        self._may_declare = True
        self.exchanges_missing: frozenset[str] = frozenset()
        """The full names of the exchanges that were missing at the last look."""
        self.trouble = ""
        """A sentence that says what is missing and what to do; empty if nothing is."""

    async def run(self, stop: asyncio.Event) -> None:
        """Looks every few seconds, and at once when something is reported, until `stop`."""
        while not stop.is_set():
            self._asked.clear()
            with suppress(Stopped):
                await unless_stopped(stop, self.look())
            if not await pause(stop, RECONNECT_INTERVAL):
                await wait_any(self._asked, stop, seconds=_LOOK_SECONDS - RECONNECT_INTERVAL)

    def report(self, error: Unroutable) -> None:
        """Takes the error of a message that no queue took: a binding may be missing, which no look shows."""
        self._reported = error, asyncio.get_running_loop().time()
        self._asked.set()

    async def look(self) -> None:
        """Looks once. If something is missing, it tries once to declare everything, and says the outcome."""
        if not self._connection.connected.is_set():
            return  # aio-pika would wait for the connection
        try:
            missing = await topology.missing(self._connection, self._names, self._channels, self._shards)
        except (BrokerUnreachable, topology.TopologyMismatch) as error:
            log.debug("exchanges and queues not looked at", because=str(error))
            return
        self.exchanges_missing = frozenset(part.name for part in missing if part.kind == "exchange")
        what = f"The broker has no {' and no '.join(map(str, missing))}." if missing else self._unroutable()
        if what:
            await self._mend(what)
        elif self.trouble:
            log.info("all exchanges and queues are there again")
            self._may_declare, self.trouble = True, ""

    async def _mend(self, what: str) -> None:
        if self._may_declare:
            try:
                await topology.declare(self._connection, self._names, self._channels, self._shards)
            except BrokerUnreachable:
                return
            except (BrokerForbids, topology.TopologyMismatch) as error:
                # Not again until everything is there: the broker logs each refusal.
                self._may_declare = False
                log.warning("exchanges and queues not declared", because=str(error))
            else:
                self.exchanges_missing, self._reported = frozenset(), None
                log.warning("exchanges and queues are declared again", because=what)
                return
        trouble = f"{what} Run “sendoff migrate”. {_KEPT}"
        if trouble != self.trouble:
            log.warning("exchanges, queues or bindings are missing", because=trouble)
        self.trouble = trouble

    def _unroutable(self) -> str:
        """Returns what was reported, as long as it is reported again and again."""
        if self._reported is None:
            return ""
        error, at = self._reported
        if asyncio.get_running_loop().time() - at > _LOOK_SECONDS:
            self._reported = None
            return ""
        return str(error)


class KeepingPublisher:
    """Publishes what must not be lost: a message that no queue takes is published again until one does."""

    def __init__(self, publisher: Publisher, routes: Routes, stop: asyncio.Event) -> None:
        """Takes what publishes.

        Args:
            publisher: Publishes.
            routes: Is told what no queue takes.
            stop: After it is set, nothing waits for a queue.
        """
        self._publisher = publisher
        self._routes = routes
        self._stop = stop

    @property
    def connected(self) -> bool:
        """Whether its connection is open now."""
        return self._publisher.connected

    @property
    def blocked(self) -> bool:
        """As `worker.amqp.messages.Publisher` says."""
        return self._publisher.blocked

    async def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Outgoing], *, mandatory: bool = True
    ) -> None:
        """Publishes messages, as `worker.amqp.messages.Publisher` says; all of them again if one is lost.

        Raises:
            Stopped: `stop` is set while no queue takes them, or while the broker is away.
        """
        kept = False
        while True:
            try:
                await self._publisher.publish(exchange, routing_key, messages, mandatory=mandatory)
            except Unroutable as error:
                if not kept:
                    log.warning("kept, to be published again", messages=len(messages), because=str(error))
                kept = True
                self._routes.report(error)
                await self._wait(exchange)
            else:
                if kept:
                    log.info("published again", exchange=exchange, messages=len(messages))
                return

    async def _wait(self, exchange: str) -> None:
        """Waits a second, or until the exchange is there: to publish without it costs others the channel."""
        while not await pause(self._stop, RECONNECT_INTERVAL):
            if exchange not in self._routes.exchanges_missing:
                return
        raise Stopped("The process stops while no queue takes what is in hand.")
