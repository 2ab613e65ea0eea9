"""Declares exchanges, queues and bindings, and looks which of them are missing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import structlog
from aio_pika import ExchangeType
from aio_pika.exceptions import AMQPChannelError, ChannelNotFoundEntity
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource
from pamqp.commands import Queue

from contracts import routing
from worker.amqp.errors import BrokerForbids, BrokerUnreachable
from worker.amqp.pika.failures import ERRORS, classify, ignoring_outage
from worker.domain.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_pika.abc import AbstractChannel, AbstractConnection
    from aiormq.abc import AbstractChannel as AbstractAmqpChannel
    from aiormq.channel import Channel
    from pamqp.common import FieldTable

    from contracts.routing import Names

log = structlog.get_logger(__name__)

DELIVERY_LIMIT: Final = 50
"""How often a message may return to its queue before the broker moves it to the dead queue. It is a safety
net and does not count attempts: on RabbitMQ 3.10 to 4.2 each restart of a worker that had prefetched the
message counts too."""

_DEAD_DELIVERY_LIMIT: Final = 2**31 - 1
"""In effect no limit: each look into the dead queue takes messages and returns them, and above the limit the
broker deletes a message permanently. It cannot be left out: RabbitMQ 4 then uses 20, and 3.10 puts returned
messages behind the others. It cannot be -1, which means no limit in RabbitMQ 4: 3.10 accepts it, and deletes
a message that returns once."""

_ANSWER_SECONDS: Final = 10
_SETUP_SECONDS: Final = 20
"""Seconds for all declarations or checks together: without a connection, aio-pika would wait forever."""

_EXCHANGES: Final = {
    routing.COMMANDS: ExchangeType.DIRECT,
    routing.SENDS: ExchangeType.DIRECT,
    routing.CLAIMS: ExchangeType.DIRECT,
    routing.RESULTS: ExchangeType.DIRECT,
    routing.TRACKING: ExchangeType.DIRECT,
    routing.EVENTS: ExchangeType.TOPIC,
    routing.DEAD: ExchangeType.FANOUT,
}


class Part(NamedTuple):
    """An exchange or a queue."""

    kind: str
    """`exchange` or `queue`: a queue may have the name of an exchange."""
    name: str
    """Its full name."""

    def __str__(self) -> str:
        """Says both."""
        return f"{self.kind} “{self.name}”"


class TopologyMismatch(Exception):
    """The broker does not have the exchanges and queues that this code needs."""


async def declare(connection: AbstractConnection, names: Names, channels: Sequence[str]) -> list[str]:
    """Declares everything. Exchanges and queues that exist stay as they are.

    Args:
        connection: The connection to the broker.
        names: The installation's names.
        channels: The sending channels. Each has a send queue.

    Returns:
        The names of the queues.

    Raises:
        BrokerForbids: the user may not declare them.
        TopologyMismatch: an exchange or queue of that name has other properties.
        BrokerUnreachable: the connection was lost, or there was no answer in time.
    """
    try:
        async with asyncio.timeout(_SETUP_SECONDS), connection.channel() as channel:
            exchanges = {
                name: await channel.declare_exchange(names.exchange(name), kind, durable=True)
                for name, kind in _EXCHANGES.items()
            }
            planned = arguments(names, channels)
            queues = {
                name: await channel.declare_queue(name, durable=True, arguments=own)
                for name, own in planned.items()
            }
            await queues[names.queue(routing.DEAD_QUEUE)].bind(exchanges[routing.DEAD], "")
            for queue_name, (exchange, keys) in _queues(channels).items():
                queue = queues[names.queue(queue_name)]
                for key in keys:
                    await queue.bind(exchanges[exchange], key)
    except ChannelAccessRefused as error:
        raise BrokerForbids(error) from error
    except AMQPChannelError as error:
        raise TopologyMismatch(
            f"The broker has something of ours with other properties: {error}."
            " Delete it, or choose another SENDOFF_QUEUE_PREFIX."
        ) from error
    except ERRORS as error:
        if classify(error) is Failure.BROKEN:
            raise
        raise _gone(error) from error
    return [names.queue(q) for q in (*_queues(channels), routing.DEAD_QUEUE)]


def arguments(names: Names, channels: Sequence[str]) -> dict[str, FieldTable]:
    """Returns the arguments with which each queue is declared, by its full name."""
    usual: FieldTable = {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": names.exchange(routing.DEAD),
    }
    dead: FieldTable = {"x-queue-type": "quorum", "x-delivery-limit": _DEAD_DELIVERY_LIMIT}
    return {names.queue(routing.DEAD_QUEUE): dead} | {names.queue(q): usual for q in _queues(channels)}


async def missing(connection: AbstractConnection, names: Names, channels: Sequence[str]) -> list[Part]:
    """Lists the exchanges and queues that are missing. It does not look at bindings.

    Raises:
        TopologyMismatch: the broker refuses to say it.
        BrokerUnreachable: as `declare`.
    """
    try:
        async with asyncio.timeout(_SETUP_SECONDS):
            return await _missing(connection, _parts(names, channels))
    except AMQPChannelError as error:
        raise TopologyMismatch(f"The broker does not say what it has: {error}.") from error
    except ERRORS as error:
        if classify(error) is Failure.BROKEN:
            raise
        raise _gone(error) from error


async def check(connection: AbstractConnection, names: Names, channels: Sequence[str]) -> None:
    """Checks that everything exists.

    Raises:
        TopologyMismatch: an exchange or a queue is missing.
        BrokerUnreachable: as `declare`.
    """
    absent = await missing(connection, names, channels)
    if absent:
        raise TopologyMismatch(
            f"The broker is not set up: it has no {' and no '.join(map(str, absent))}. Run “sendoff migrate”."
        )


async def check_set_up(connection: AbstractConnection, names: Names, channels: Sequence[str]) -> None:
    """Checks that something of ours exists. What is missing beside it is declared or waited for later.

    Raises:
        TopologyMismatch: the broker has nothing of ours: it was never set up, or the prefix is wrong.
        BrokerUnreachable: as `declare`.
    """
    if await missing(connection, names, channels) == _parts(names, channels):
        raise TopologyMismatch(
            f"The broker is not set up: it has no exchange and no queue of ours, such as"
            f" “{names.exchange(routing.COMMANDS)}”. Run “sendoff migrate”, or see SENDOFF_QUEUE_PREFIX."
        )


class QueueDepth:
    """Returns how many messages wait in a queue."""

    def __init__(self, connection: AbstractConnection) -> None:
        """Takes a connection. `ready` opens the AMQP channel when it is first called."""
        self._connection = connection
        self._channel: AbstractChannel | None = None
        self._missing: set[str] = set()

    async def ready(self, queue: str) -> int | None:
        """Returns how many messages wait in a queue. Messages that consumers hold do not count.

        Args:
            queue: Its full name.

        Returns:
            None if it is not known: the broker is away, does not answer in time, or has no such queue. This
            is logged once.

        Raises:
            BrokerForbids: the user may not read the queue.
        """
        if not self._connection.connected.is_set():
            return None  # aio-pika would wait for the connection
        try:
            with ignoring_outage():
                async with asyncio.timeout(_ANSWER_SECONDS):
                    count = await self._ask(queue)
                if queue in self._missing:
                    log.info("queue is there again", queue=queue)
                    self._missing.discard(queue)
                return count
        except ChannelNotFoundEntity:
            if queue not in self._missing:
                log.warning("queue missing: run “sendoff migrate”", queue=queue)
                self._missing.add(queue)
        except ChannelAccessRefused as error:
            raise BrokerForbids(error) from error
        return None

    async def _ask(self, queue: str) -> int:
        if self._channel is None or self._channel.is_closed:
            self._channel = self._connection.channel(publisher_confirms=False)
            await self._channel.initialize()
        underlay = await self._channel.get_underlay_channel()
        declared = await underlay.queue_declare(queue, passive=True)
        return declared.message_count or 0


class _Declare(Queue.Declare):
    """Asks for a queue of any name. pamqp refuses some that are there, such as those of direct reply-to."""

    def validate(self) -> None:
        """Accepts."""


class AnswerQueues:
    """Says whether the queue is there that a message names for its answer."""

    def __init__(self, connection: AbstractConnection) -> None:
        """Takes a connection. Each question opens an AMQP channel, since most answers close one."""
        self._connection = connection

    async def there(self, queue: str) -> bool:
        """Returns whether a queue is there, also one that belongs to another connection alone.

        Args:
            queue: Its full name, or a name of direct reply-to.

        Returns:
            False also if the broker is away or does not answer in time.
        """
        if self._connection.transport is None or not self._connection.connected.is_set():
            return False
        with ignoring_outage():
            async with asyncio.timeout(_ANSWER_SECONDS):
                # Not aio-pika's own, which would open itself again.
                opened = await self._connection.transport.connection.channel(publisher_confirms=False)
                channel = cast("Channel", opened)
                try:
                    await channel.rpc(_Declare(queue=queue, passive=True))
                except ChannelLockedResource:
                    return True  # it belongs to another connection
                except ChannelNotFoundEntity:
                    return False
                finally:
                    await channel.close()
                return True
        return False


async def _missing(connection: AbstractConnection, parts: Sequence[Part]) -> list[Part]:
    absent: list[Part] = []
    channel: AbstractAmqpChannel | None = None
    try:
        for part in parts:
            if channel is None:
                if connection.transport is None:
                    raise BrokerUnreachable("The broker went out of reach.")
                # aiormq's own, which nobody opens again when the broker closes it for a name that is missing.
                channel = await connection.transport.connection.channel(publisher_confirms=False)
            try:
                if part.kind == "exchange":
                    await channel.exchange_declare(part.name, passive=True)
                else:
                    await channel.queue_declare(part.name, passive=True)
            except ChannelNotFoundEntity:
                absent.append(part)
                channel = None
    finally:
        if channel is not None:
            await channel.close()
    return absent


def _gone(error: BaseException) -> BrokerUnreachable:
    return BrokerUnreachable(f"The broker went out of reach: {str(error) or type(error).__name__}")


def _queues(channels: Sequence[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    sends = {routing.send_queue(channel): (routing.SENDS, (channel,)) for channel in channels}
    return {**routing.BINDINGS, routing.CLAIMS_QUEUE: (routing.CLAIMS, tuple(channels)), **sends}


def _parts(names: Names, channels: Sequence[str]) -> list[Part]:
    exchanges = [Part("exchange", names.exchange(name)) for name in _EXCHANGES]
    return exchanges + [Part("queue", names.queue(q)) for q in (*_queues(channels), routing.DEAD_QUEUE)]
