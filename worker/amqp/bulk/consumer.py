"""Consuming in bulk: messages arrive in batches as they were read, and are acknowledged by range.

A delivery tag is valid on its connection only. When the connection is lost, the messages that wait here are
dropped, since the broker delivers them again. A later acknowledgement of them is dropped too. So each of our
services must accept a message twice.

The broker may end the consumer and leave the connection: when the queue is deleted, and from RabbitMQ 4.3 on
when a message was held for too long. Then we consume again a second later, and what is in hand is
acknowledged as before.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import structlog
from pamqp import commands

from worker.amqp.buffer import Buffer, has_priority
from worker.amqp.bulk.connection import Events, connect
from worker.amqp.bulk.encoding import acknowledgement, method
from worker.amqp.bulk.errors import NOT_FOUND, AmqpChannelClosed, ConnectionLost
from worker.amqp.bulk.keeper import Keeper
from worker.amqp.errors import RECONNECT_INTERVAL
from worker.amqp.ledger import Ledger
from worker.amqp.messages import QueueMissing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pamqp.base import Frame

    from worker.amqp.messages import Incoming

log = structlog.get_logger(__name__)

_TAG: Final = "sendoff"
"""The first consumer tag of a connection; others have a number."""

_CANCEL_SECONDS: Final = 5

_channel_of = attrgetter("channel")


class BulkConsumer:
    """Consumes one queue, or its shards, over one connection of its own."""

    def __init__(
        self,
        url: str,
        queue: str,
        *,
        name: str,
        prefetch: int,
        connect_timeout: float,
        by_priority: bool = False,
        shards: Sequence[str] = (),
    ) -> None:
        """Takes the queue; `start` connects and consumes.

        Args:
            url: `amqp://…` or `amqps://…`.
            queue: Its full name.
            name: What operators see in the broker's list of connections.
            prefetch: The most unacknowledged messages; twice a batch is enough.
            connect_timeout: Seconds for each attempt to connect.
            by_priority: Whether messages with a priority overtake those that wait here.
            shards: The other queues that are read with it, as one. They share the prefetch.
        """
        self._url = url
        self.queue = queue
        self._queues = (queue, *shards)
        self._name = name
        self._prefetch = prefetch
        self._connect_timeout = connect_timeout
        self._buffer: Buffer[Incoming] = Buffer(has_priority if by_priority else None)
        self._keeper: Keeper[_AmqpChannel] = Keeper(f"{name} {queue}", self._open)

    async def start(self) -> None:
        """Connects and consumes.

        Raises:
            BrokerUnreachable: there is no broker at the address, or it refuses our login.
            QueueMissing: there is no such queue.
            AmqpChannelClosed: we may not consume it.
        """
        try:
            await self._keeper.start()
        except AmqpChannelClosed as error:
            if error.code == NOT_FOUND:
                raise QueueMissing(str(error)) from error
            raise

    async def present(self) -> bool:
        """Returns whether the broker delivers to this consumer now, for the readiness probe."""
        channel = self._keeper.current
        return channel is not None and channel.complete and not self._buffer.stopped

    async def batch(self, size: int, age: float = 0) -> list[Incoming]:
        """Waits for messages, as `worker.amqp.messages.Consumer` says."""
        return await self._buffer.batch(size, age)

    def acknowledge(self, messages: Iterable[Incoming]) -> None:
        """Acknowledges messages soon, in ranges where possible."""
        for channel, group in itertools.groupby(messages, _channel_of):
            channel.handled([message.tag for message in group])

    async def watch(self) -> None:
        """Returns when the consumer is closed; raises the error that ended its connection task."""
        await self._keeper.watch()

    async def stop(self) -> None:
        """Stops consuming. Messages in the buffer go back to the queue when the connection closes."""
        self._buffer.stop()
        channel = self._keeper.current
        if channel is not None:
            with contextlib.suppress(TimeoutError, ConnectionLost):
                async with asyncio.timeout(_CANCEL_SECONDS):
                    for tag in list(channel.consumed):
                        await channel.connection.call(commands.Basic.Cancel(tag))

    async def close(self) -> None:
        """Sends the last acknowledgements and closes the connection."""
        self._buffer.stop()
        if self._keeper.current is not None:
            self._keeper.current.send_due(everything=True)
        await self._keeper.close()

    async def _open(self) -> _AmqpChannel:
        channel = _AmqpChannel(max(self._prefetch // 4, 1), self._buffer, self._queues)
        prepare: list[Frame] = [commands.Basic.Qos(0, max(self._prefetch // len(self._queues), 1))]
        if not self._buffer.stopped:
            prepare += [commands.Basic.Consume(0, queue, tag) for tag, queue in channel.consumed.items()]
        await connect(self._url, channel, prepare, name=self._name, timeout=self._connect_timeout)
        return channel


class _AmqpChannel(Events):
    """The messages of one connection. They can be acknowledged on this connection only."""

    def __init__(self, gap_limit: int, buffer: Buffer[Incoming], queues: Sequence[str]) -> None:
        self._ledger = Ledger(gap_limit)
        self._buffer = buffer
        self._queues = len(queues)
        self._tags = itertools.chain((_TAG,), (f"{_TAG}-{n}" for n in itertools.count(2)))
        self.consumed = {next(self._tags): queue for queue in queues}  # without those that the broker ended
        self._loop = asyncio.get_running_loop()
        self._due = False

    def delivered(self, batch: list[Incoming]) -> None:
        self._ledger.delivered(message.tag for message in batch)
        self._buffer.add(batch)

    def lost(self, error: ConnectionLost) -> None:  # noqa: ARG002
        self._buffer.clear()

    @property
    def complete(self) -> bool:
        return len(self.consumed) == self._queues

    def cancelled(self, tag: str) -> None:
        queue = self.consumed.pop(tag, None)
        if queue is None:
            return
        log.warning("the broker ended the consumer", queue=queue)
        # Not at once: a queue that was deleted is declared again meanwhile; without it we lose the channel.
        self._loop.call_later(RECONNECT_INTERVAL, self._consume_again, queue)

    def _consume_again(self, queue: str) -> None:
        if self._buffer.stopped or self.connection.lost.done():
            return
        tag = next(self._tags)  # the broker may still keep the last one
        self.consumed[tag] = queue
        self.connection.write(method(commands.Basic.Consume(0, queue, tag, nowait=True)))
        log.info("consuming again", queue=queue)

    def handled(self, tags: list[int]) -> None:
        self._ledger.handled(tags)
        if not self._due:
            self._due = True
            # At the end of this turn of the loop, so that all acknowledgements of the turn are one range.
            self._loop.call_soon(self.send_due)

    def send_due(self, *, everything: bool = False) -> None:
        self._due = False
        upto, alone = self._ledger.due(everything=everything)
        frames = [acknowledgement(tag, multiple=False) for tag in alone]
        if upto:
            frames.insert(0, acknowledgement(upto, multiple=True))
        if frames:
            self.connection.write(b"".join(frames))
