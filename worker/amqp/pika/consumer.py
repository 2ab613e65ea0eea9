"""Consuming: gathers messages into batches, and acknowledges them by range from one task.

The callback only puts a message into the buffer. aio-pika cancels callbacks when an AMQP channel is lost, and
the work on a message must go on. A delivery tag is valid on its AMQP channel only. So an acknowledgement
after a reconnect is dropped, and the broker delivers the message again. Each of our services must accept a
message twice.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import aiormq
from aio_pika.exceptions import ChannelNotFoundEntity

from worker.amqp.buffer import Buffer, has_priority
from worker.amqp.ledger import Ledger
from worker.amqp.messages import Incoming, QueueMissing
from worker.amqp.pika.failures import ignoring_outage
from worker.lifecycle import Background

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aio_pika.abc import (
        AbstractIncomingMessage,
        AbstractRobustChannel,
        AbstractRobustConnection,
        AbstractRobustQueue,
    )

_FAREWELL_SECONDS: Final = 5
"""Seconds that each step of a consumer's end may take."""


class PikaConsumer:
    """Consumes one queue, or its shards."""

    def __init__(
        self,
        connection: AbstractRobustConnection,
        queue: str,
        *,
        prefetch: int,
        by_priority: bool = False,
        shards: Sequence[str] = (),
    ) -> None:
        """Takes the connection; `start` begins.

        Args:
            connection: The connection that only consumes.
            queue: Its full name.
            prefetch: The most unacknowledged messages; twice a batch is enough.
            by_priority: Whether messages with a priority overtake those that wait here.
            shards: The other queues that are read with it, as one. They share the prefetch.
        """
        self._connection = connection
        self.queue = queue
        self._queues = (queue, *shards)
        self._prefetch = prefetch
        self._buffer: Buffer[Incoming] = Buffer(has_priority if by_priority else None)
        self._acknowledger = _Acknowledger(gap_limit=max(prefetch // 4, 1))
        self._consumed: dict[str, AbstractRobustQueue] = {}
        self._channel: AbstractRobustChannel
        self._acker: Background

    async def start(self) -> None:
        """Opens an AMQP channel and consumes.

        Raises:
            QueueMissing: there is no such queue.
        """
        channel = self._connection.channel(publisher_confirms=False)
        self._channel = channel
        await self._channel.initialize()
        await self._channel.set_qos(prefetch_count=max(self._prefetch // len(self._queues), 1))
        # Declared passively, so that a reconnect restores the consumer and never changes the queue.
        try:
            sources = [await self._channel.declare_queue(queue, passive=True) for queue in self._queues]
        except ChannelNotFoundEntity as error:
            with ignoring_outage():
                await self._channel.close()
            raise QueueMissing(str(error)) from error
        self._acker = Background(self._acknowledger.run(), f"acknowledge {self.queue}")
        self._consumed = {await source.consume(self._take): source for source in sources}

    async def present(self) -> bool:
        """Returns whether the broker delivers to this consumer now, for the readiness probe."""
        if not self._consumed or not self._connection.connected.is_set() or self._channel.is_closed:
            return False
        underlay = await self._channel.get_underlay_channel()
        return isinstance(underlay, aiormq.Channel) and self._consumed.keys() <= underlay.consumers.keys()

    async def batch(self, size: int, age: float = 0) -> list[Incoming]:
        """Waits for messages, as `worker.amqp.messages.Consumer` says."""
        return await self._buffer.batch(size, age)

    def acknowledge(self, messages: Iterable[Incoming]) -> None:
        """Acknowledges messages soon, in ranges where possible."""
        self._acknowledger.handled(messages)

    async def watch(self) -> None:
        """Returns when the consumer is closed; raises the error that ended the task that acknowledges."""
        await self._acker.watch()

    async def stop(self) -> None:
        """Stops consuming. Messages in the buffer go back to the queue when the channel closes."""
        self._buffer.stop()
        # Without a connection aio-pika would wait for the next one.
        if self._connection.connected.is_set():
            with ignoring_outage():
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    for tag, source in self._consumed.items():
                        await source.cancel(tag)
        self._consumed = {}

    async def close(self) -> None:
        """Sends the last acknowledgements and closes the channel."""
        self._acknowledger.finish()
        if self._connection.connected.is_set():
            with ignoring_outage():
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await self._acker.wait()
                    await self._channel.close()
        await self._acker.end()

    async def _take(self, message: AbstractIncomingMessage) -> None:
        tag = message.delivery_tag
        if tag is None or self._buffer.stopped:
            return
        incoming = Incoming(
            message.body,
            message.exchange or "",
            message.routing_key or "",
            message.message_id,
            message.correlation_id,
            message.reply_to,
            message.user_id,
            message.headers,
            tag,
            message.channel,
            message.priority or 0,
        )
        self._acknowledger.delivered(incoming)
        self._buffer.add((incoming,))


class _Acknowledger:
    """The one task that acknowledges the messages of the current AMQP channel.

    One task, because acknowledgements of ranges must leave in order. An older range after a newer one names
    unknown tags, and then the broker closes the channel.
    """

    def __init__(self, gap_limit: int) -> None:
        self._gap_limit = gap_limit
        self._channel: Any = None  # aiormq's channel of the last message
        self._ledger = Ledger(gap_limit)
        self._wake = asyncio.Event()
        self._finished = False

    def delivered(self, message: Incoming) -> None:
        if message.channel is not self._channel:
            self._channel = message.channel
            self._ledger = Ledger(self._gap_limit)
        self._ledger.delivered([message.tag])

    def handled(self, messages: Iterable[Incoming]) -> None:
        self._ledger.handled(m.tag for m in messages if m.channel is self._channel)
        self._wake.set()

    def finish(self) -> None:
        self._finished = True
        self._wake.set()

    async def run(self) -> None:
        last = False
        while not last:
            await self._wake.wait()
            self._wake.clear()
            last = self._finished  # what was handled before the end is still acknowledged
            channel = self._channel
            upto, alone = self._ledger.due(everything=last)
            with ignoring_outage():  # if the channel is lost, the broker delivers again
                if upto:
                    await channel.basic_ack(upto, multiple=True)
                for tag in alone:
                    await channel.basic_ack(tag)
