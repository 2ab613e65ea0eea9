"""Consuming in bulk: messages arrive in batches as they were read, and are acknowledged by range.

A delivery tag is valid on its connection only. When the connection is lost, the messages that wait here are
dropped, since the broker delivers them again. A later acknowledgement of them is dropped too. So each of our
services must accept a message twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from pamqp import commands

from worker.amqp.buffer import Buffer
from worker.amqp.bulk.connection import Events, connect
from worker.amqp.bulk.encoding import acknowledgement
from worker.amqp.bulk.errors import NOT_FOUND, AmqpChannelClosed, ConnectionLost
from worker.amqp.bulk.keeper import Keeper
from worker.amqp.ledger import Ledger
from worker.amqp.messages import QueueMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pamqp.base import Frame

    from worker.amqp.messages import Incoming

_TAG: Final = "sendoff"
"""The consumer tag; a connection has only one consumer."""

_CANCEL_SECONDS: Final = 5

_channel_of = attrgetter("channel")


class BulkConsumer:
    """Consumes one queue over one connection of its own."""

    def __init__(self, url: str, queue: str, *, name: str, prefetch: int, connect_timeout: float) -> None:
        """Takes the queue; `start` connects and consumes.

        Args:
            url: `amqp://…` or `amqps://…`.
            queue: Its full name.
            name: What operators see in the broker's list of connections.
            prefetch: The most unacknowledged messages; twice a batch is enough.
            connect_timeout: Seconds for each attempt to connect.
        """
        self._url = url
        self.queue = queue
        self._name = name
        self._prefetch = prefetch
        self._connect_timeout = connect_timeout
        self._buffer: Buffer[Incoming] = Buffer()
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
        return self._keeper.current is not None and not self._buffer.stopped

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
                    await channel.connection.call(commands.Basic.Cancel(_TAG))

    async def close(self) -> None:
        """Sends the last acknowledgements and closes the connection."""
        self._buffer.stop()
        if self._keeper.current is not None:
            self._keeper.current.send_due(everything=True)
        await self._keeper.close()

    async def _open(self) -> _AmqpChannel:
        channel = _AmqpChannel(max(self._prefetch // 4, 1), self._buffer.add, self._buffer.clear)
        prepare: list[Frame] = [commands.Basic.Qos(0, self._prefetch)]
        if not self._buffer.stopped:
            prepare.append(commands.Basic.Consume(0, self.queue, _TAG))
        await connect(self._url, channel, prepare, name=self._name, timeout=self._connect_timeout)
        return channel


class _AmqpChannel(Events):
    """The messages of one connection. They can be acknowledged on this connection only."""

    def __init__(
        self, gap_limit: int, take: Callable[[list[Incoming]], None], forget: Callable[[], None]
    ) -> None:
        self._ledger = Ledger(gap_limit)
        self._take = take
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._due = False

    def delivered(self, batch: list[Incoming]) -> None:
        self._ledger.delivered(message.tag for message in batch)
        self._take(batch)

    def lost(self, error: ConnectionLost) -> None:  # noqa: ARG002
        self._forget()

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
