"""Publishing: persistent, mandatory, confirmed, many at once within a window. It waits during an outage."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed, PublishError
from aiormq.exceptions import ChannelAccessRefused

from contracts.routing import CONTENT_TYPE, HEADER_SCHEMA_VERSION, SCHEMA_VERSION
from worker.amqp.errors import RECONNECT_INTERVAL, BrokerForbids
from worker.amqp.messages import APP_ID, MessageRefused, Unroutable
from worker.amqp.pika.connection import blocked
from worker.amqp.pika.failures import classify
from worker.domain.failures import Failure
from worker.lifecycle import unless_stopped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_pika.abc import AbstractExchange, AbstractRobustChannel, AbstractRobustConnection

    from worker.amqp.messages import Outgoing

log = structlog.get_logger(__name__)


class PikaPublisher:
    """Publishes with confirms over one AMQP channel. Any number of tasks may use it."""

    def __init__(
        self,
        connection: AbstractRobustConnection,
        *,
        window: int,
        timeout: float,
        stop: asyncio.Event | None = None,
    ) -> None:
        """Takes the connection; `start` opens the channel.

        Args:
            connection: The connection that only publishes.
            window: The most publishes without a confirm.
            timeout: Seconds for one confirm. After that the message is published again, since it may be lost.
            stop: After it is set, `publish` does not wait for a broker that is away.
        """
        self._connection = connection
        self._window = asyncio.Semaphore(window)
        self._timeout = timeout
        self._stop = stop or asyncio.Event()
        self._channel: AbstractRobustChannel
        self._exchanges: dict[str, AbstractExchange] = {}

    @property
    def connected(self) -> bool:
        """Whether the connection is open now."""
        return self._connection.connected.is_set()

    @property
    def blocked(self) -> bool:
        """Whether the broker takes no publishes at this moment; it says so at the first of them."""
        return blocked(self._connection)

    async def start(self) -> None:
        """Opens the channel."""
        channel = self._connection.channel(publisher_confirms=True, on_return_raises=True)
        self._channel = channel
        await self._channel.initialize(timeout=self._timeout)

    async def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Outgoing], *, mandatory: bool = True
    ) -> None:
        """Publishes messages, as `worker.amqp.messages.Publisher` says.

        Raises:
            Unroutable: no queue took one of them, or there is no such exchange.
            MessageRefused: the broker refuses one of them.
            BrokerForbids: the broker user may not publish there.
            Stopped: `stop` is set while the broker is away; some may be published.
        """
        target = await self._exchange(exchange)
        rest = messages
        # We wait for a broker that is away or busy: there is nothing better to do until the process stops.
        while rest:
            results = await asyncio.gather(
                *(self._one(target, routing_key, m, mandatory=mandatory) for m in rest),
                return_exceptions=True,
            )
            again = []
            fault: BaseException | None = None
            for message, result in zip(rest, results, strict=True):
                if isinstance(result, PublishError):
                    raise Unroutable(f"No queue takes {exchange!r} with the key {routing_key!r}.") from result
                if isinstance(result, ChannelNotFoundEntity) and f"'{exchange}'" in str(result):
                    raise Unroutable(f"There is no exchange {exchange!r}: {result}.") from result
                if isinstance(result, ChannelPreconditionFailed):
                    raise MessageRefused(
                        f"The broker refuses what is published to {exchange!r}: {result}"
                    ) from result
                if isinstance(result, ChannelAccessRefused):
                    raise BrokerForbids(result) from result
                if isinstance(result, BaseException):
                    # A missing exchange closes the channel of all: of others the error says their name.
                    others = isinstance(result, ChannelNotFoundEntity)
                    if classify(result) is Failure.BROKEN and not others:
                        raise result
                    again.append(message)
                    fault = result
            if again:
                log.warning(
                    "publishing again",
                    exchange=exchange,
                    messages=len(again),
                    because=str(fault) or repr(fault),
                )
                await asyncio.sleep(RECONNECT_INTERVAL)
            rest = again

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def _one(
        self, exchange: AbstractExchange, routing_key: str, message: Outgoing, *, mandatory: bool
    ) -> None:
        async with self._window:
            await self._ready()
            await exchange.publish(
                Message(
                    message.body,
                    content_type=CONTENT_TYPE,
                    delivery_mode=DeliveryMode.PERSISTENT,
                    app_id=APP_ID,
                    type=message.type,
                    message_id=message.message_id,
                    correlation_id=message.correlation_id,
                    timestamp=datetime.now(UTC),
                    priority=message.priority,
                    headers={HEADER_SCHEMA_VERSION: SCHEMA_VERSION, **(message.headers or {})},
                ),
                routing_key,
                mandatory=mandatory,
                timeout=self._timeout,
            )

    async def _ready(self) -> None:
        # aio-pika's publish would wait for the connection too, but it does not know `stop`.
        if not self.connected:
            await unless_stopped(self._stop, self._channel.ready())

    async def _exchange(self, name: str) -> AbstractExchange:
        if name not in self._exchanges:
            await self._ready()
            self._exchanges[name] = (
                await self._channel.get_exchange(name, ensure=False)
                if name
                else self._channel.default_exchange
            )
        return self._exchanges[name]
