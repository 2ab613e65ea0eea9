"""Declares exchanges, queues and bindings, and looks which of them are missing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, Self, cast

import structlog
from aio_pika import ExchangeType
from aio_pika.exceptions import AMQPChannelError, ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource
from pamqp.commands import Queue

from contracts import routing
from worker.amqp.errors import BrokerForbids, BrokerUnreachable
from worker.amqp.pika.failures import ERRORS, classify, ignoring_outage
from worker.amqp.policies import DELIVERY_LIMIT
from worker.domain.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_pika.abc import AbstractChannel, AbstractConnection
    from aiormq.abc import AbstractChannel as AbstractAmqpChannel
    from aiormq.channel import Channel
    from pamqp.common import FieldTable

    from contracts.routing import Names

log = structlog.get_logger(__name__)

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


class Declared(NamedTuple):
    """What was declared, or was there."""

    queues: list[str]
    """The full names of all queues."""
    earlier: list[str]
    """Those among them that an earlier version declared, with the delivery limit as an argument."""


async def declare(
    connection: AbstractConnection, names: Names, channels: Sequence[str], shards: int = 1
) -> Declared:
    """Declares everything. Exchanges and queues that exist stay as they are, with all that is in them.

    Args:
        connection: The connection to the broker.
        names: The installation's names.
        channels: The sending channels. Each has a send queue.
        shards: In how many queues that is split.

    Raises:
        BrokerForbids: the user may not declare them.
        TopologyMismatch: an exchange or queue of that name has other properties.
        BrokerUnreachable: the connection was lost, or there was no answer in time.
    """
    planned = arguments(names, channels, shards)
    found: list[str] = []
    try:
        async with asyncio.timeout(_SETUP_SECONDS), _Declaring(connection) as declaring:
            for name, kind in _EXCHANGES.items():
                await declaring.exchange(names.exchange(name), kind)
            for queue, kinds in planned.items():
                if await declaring.queue(queue, kinds):
                    found.append(queue)
            await declaring.bind(names.queue(routing.DEAD_QUEUE), names.exchange(routing.DEAD), "")
            for queue_name, (exchange, keys) in _queues(channels, shards).items():
                for key in keys:
                    await declaring.bind(names.queue(queue_name), names.exchange(exchange), key)
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
    return Declared([names.queue(q) for q in (*_queues(channels, shards), routing.DEAD_QUEUE)], found)


def arguments(names: Names, channels: Sequence[str], shards: int = 1) -> dict[str, tuple[FieldTable, ...]]:
    """Returns the arguments of each queue by its full name: ours, then those of an earlier version."""
    usual: FieldTable = {"x-queue-type": "quorum", "x-dead-letter-exchange": names.exchange(routing.DEAD)}
    earlier: FieldTable = {**usual, "x-delivery-limit": DELIVERY_LIMIT}
    dead: FieldTable = {"x-queue-type": "quorum", "x-delivery-limit": _DEAD_DELIVERY_LIMIT}
    planned: dict[str, tuple[FieldTable, ...]] = {names.queue(routing.DEAD_QUEUE): (dead,)}
    return planned | {names.queue(q): (usual, earlier) for q in _queues(channels, shards)}


async def missing(
    connection: AbstractConnection, names: Names, channels: Sequence[str], shards: int = 1
) -> list[Part]:
    """Lists the exchanges and queues that are missing. It does not look at bindings.

    Raises:
        TopologyMismatch: the broker refuses to say it.
        BrokerUnreachable: as `declare`.
    """
    try:
        async with asyncio.timeout(_SETUP_SECONDS):
            return await _missing(connection, _parts(names, channels, shards))
    except AMQPChannelError as error:
        raise TopologyMismatch(f"The broker does not say what it has: {error}.") from error
    except ERRORS as error:
        if classify(error) is Failure.BROKEN:
            raise
        raise _gone(error) from error


async def check(
    connection: AbstractConnection, names: Names, channels: Sequence[str], shards: int = 1
) -> None:
    """Checks that everything exists.

    Raises:
        TopologyMismatch: an exchange or a queue is missing.
        BrokerUnreachable: as `declare`.
    """
    absent = await missing(connection, names, channels, shards)
    if absent:
        raise TopologyMismatch(
            f"The broker is not set up: it has no {' and no '.join(map(str, absent))}. Run “sendoff migrate”."
        )


async def check_set_up(
    connection: AbstractConnection, names: Names, channels: Sequence[str], shards: int = 1
) -> None:
    """Checks that something of ours exists. What is missing beside it is declared or waited for later.

    Raises:
        TopologyMismatch: the broker has nothing of ours: it was never set up, or the prefix is wrong.
        BrokerUnreachable: as `declare`.
    """
    if await missing(connection, names, channels, shards) == _parts(names, channels, shards):
        raise TopologyMismatch(
            f"The broker is not set up: it has no exchange and no queue of ours, such as"
            f" “{names.exchange(routing.COMMANDS)}”. Run “sendoff migrate”, or see SENDOFF_QUEUE_PREFIX."
        )


class QueueDepth:
    """Returns how many messages wait in a queue, or in all its shards."""

    def __init__(self, connection: AbstractConnection, shards: int = 1) -> None:
        """Takes a connection, and how many shards a queue has.

        `ready` opens the AMQP channel when it is first called.
        """
        self._shards = shards
        self._connection = connection
        self._channel: AbstractChannel | None = None
        self._missing: set[str] = set()

    async def ready(self, queue: str) -> int | None:
        """Returns how many messages wait in a queue with its shards; those that consumers hold do not count.

        Args:
            queue: Its full name; of shards that of the first.

        Returns:
            None if it is not known: the broker is away, does not answer in time, or has no such queue. This
            is logged once.

        Raises:
            BrokerForbids: the user may not read the queue.
        """
        waiting = 0
        for shard in routing.sharded(queue, self._shards):
            found = await self._ready(shard)
            if found is None:
                return None
            waiting += found
        return waiting

    async def _ready(self, queue: str) -> int | None:
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


class _Declaring:
    """Declares over AMQP channels of aiormq's own: a refusal closes one, and nobody opens it again."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._channel: AbstractAmqpChannel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None and not self._channel.is_closed:
            await self._channel.close()

    async def exchange(self, name: str, kind: ExchangeType) -> None:
        await (await self._open()).exchange_declare(name, exchange_type=kind.value, durable=True)

    async def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        await (await self._open()).queue_bind(queue, exchange, routing_key)

    async def queue(self, name: str, kinds: Sequence[FieldTable]) -> bool:
        """Declares a queue; returns whether it is there with the arguments of an earlier version.

        Raises:
            ChannelPreconditionFailed: it has others.
        """
        usual, *earlier = kinds
        try:
            await (await self._open()).queue_declare(name, durable=True, arguments=usual)
        except ChannelPreconditionFailed:
            if not earlier:
                raise
            await self.queue(name, earlier)
            return True
        return False

    async def _open(self) -> AbstractAmqpChannel:
        if self._channel is None or self._channel.is_closed:
            if self._connection.transport is None:
                raise BrokerUnreachable("The broker went out of reach.")
            self._channel = await self._connection.transport.connection.channel(publisher_confirms=False)
        return self._channel


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


def _queues(channels: Sequence[str], shards: int) -> dict[str, tuple[str, tuple[str, ...]]]:
    keys = [key for channel in channels for key in routing.sharded(channel, shards)]
    sends = {routing.send_queue(key): (routing.SENDS, (key,)) for key in keys}
    return {**routing.BINDINGS, routing.CLAIMS_QUEUE: (routing.CLAIMS, tuple(channels)), **sends}


def _parts(names: Names, channels: Sequence[str], shards: int) -> list[Part]:
    exchanges = [Part("exchange", names.exchange(name)) for name in _EXCHANGES]
    return exchanges + [
        Part("queue", names.queue(q)) for q in (*_queues(channels, shards), routing.DEAD_QUEUE)
    ]
