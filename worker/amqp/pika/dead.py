"""The dead queue, looked into by a person: what is in it, why, and back to where it came from.

Messages are taken without acknowledging them, and what is not settled is given back in the end. Two who do
this at the same time do not see each other's messages, and lose none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aio_pika import DeliveryMode, Message
from aio_pika.exceptions import AMQPChannelError, DeliveryError, PublishError
from aiormq.exceptions import ChannelAccessRefused

from contracts.routing import DEAD_QUEUE, HEADER_EXCHANGE, HEADER_REASON, HEADER_ROUTING_KEY
from worker.amqp.errors import BrokerForbids, BrokerUnreachable
from worker.amqp.pika.failures import ERRORS, classify, ignoring_outage
from worker.amqp.topology import TopologyMismatch
from worker.domain.failures import Failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from aio_pika.abc import (
        AbstractIncomingMessage,
        AbstractRobustChannel,
        AbstractRobustConnection,
        AbstractRobustQueue,
    )

    from contracts.routing import Names

_OURS: Final = (HEADER_REASON, HEADER_EXCHANGE, HEADER_ROUTING_KEY)
_BROKERS: Final = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
LOOKED_AT: Final = 1_000
"""Messages that are taken whenever somebody looks, however few are asked for: the broker puts what comes back
behind all that came back before, so only who takes all of that again finds everything in its old order."""
_NO_REASON: Final = "It does not say why it is here."


class CannotReplay(Exception):  # noqa: N818 - the name is the sentence
    """A message cannot go back; it stays in the dead queue, and the message says why."""


class Origin(NamedTuple):
    """Why a message is dead, and where it came from."""

    reason: str
    """A sentence: of the worker that put it here, or what the broker says."""
    exchange: str | None
    """Where it was first published to, and what with; None if nobody knows."""
    routing_key: str | None
    vouched: bool
    """Whether the broker says so; else the headers claim it, which whoever published the message wrote."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message in the dead queue."""

    position: int
    """From the head of the queue, the oldest, which is 1."""
    origin: Origin
    """Why it is here, and where it came from."""
    message: AbstractIncomingMessage


class DeadLetters:
    """The dead queue over one channel; made by `open_dead_letters`."""

    def __init__(
        self, queue: AbstractRobustQueue, connection: AbstractRobustConnection, names: Names, timeout: float
    ) -> None:
        self._queue = queue
        self._names = names
        self._connection = connection
        self._publishing: AbstractRobustChannel | None = None
        self._timeout = timeout
        self._taken = 0
        self._ahead: deque[AbstractIncomingMessage] = deque()
        self.total = queue.declaration_result.message_count or 0
        """How many messages there were when it was opened."""

    async def take(self) -> DeadLetter | None:
        """Takes the next message, from the oldest on; None after the last of `total`.

        What comes later is left for another time, so that a message that is replayed and fails again does not
        go round for ever.
        """
        if not self._ahead and self._taken < self.total:
            await self.look_ahead(self.total - self._taken)
        if not self._ahead:
            return None
        message = self._ahead.popleft()
        self._taken += 1
        return DeadLetter(self._taken, origin(message.headers, self._names), message)

    async def look_ahead(self, most: int = LOOKED_AT) -> None:
        """Takes the next messages, as many as there are, up to `most` and `LOOKED_AT`."""
        while len(self._ahead) < min(most, LOOKED_AT):
            message = await self._queue.get(fail=False, timeout=self._timeout)
            if message is None:
                break
            self._ahead.append(message)
        # The broker's own count lags behind what it hands out.
        self.total = max(self.total, self._taken + len(self._ahead))

    async def replay(self, letter: DeadLetter) -> None:
        """Publishes a message where it was first published to, and removes it once the broker has confirmed.

        Where the connection is lost in between, it is both there and here: every consumer takes a message
        twice.

        Raises:
            CannotReplay: nobody vouches for where it came from, that is no place of ours, or nothing takes
                it there.
        """
        _, exchange_name, routing_key, _ = letter.origin
        if exchange_name is None or routing_key is None:
            raise CannotReplay("Nobody vouches for where it was first published to.")
        if self._names.queue_behind(exchange_name, routing_key) is None:
            raise CannotReplay(
                f"Its headers claim the exchange “{exchange_name}” with the key “{routing_key}”:"
                " no queue of ours is behind them."
            )
        if self._publishing is None:
            self._publishing = self._connection.channel(on_return_raises=True)
            await self._publishing.initialize(timeout=self._timeout)
        exchange = await self._publishing.get_exchange(exchange_name, ensure=False)
        where = f"the exchange “{exchange_name}” with the key “{routing_key}”"
        try:
            await exchange.publish(_again(letter.message), routing_key, timeout=self._timeout)
        except PublishError as error:
            raise CannotReplay(f"No queue takes {where}.") from error
        except AMQPChannelError as error:
            self._publishing = None  # the broker has closed it
            raise CannotReplay(f"The broker does not take it to {where}: {error}.") from error
        except DeliveryError as error:
            raise CannotReplay(f"The broker refused it for {where}.") from error
        await letter.message.ack()

    async def drop(self, letter: DeadLetter) -> None:
        """Removes a message permanently."""
        await letter.message.ack()


@asynccontextmanager
async def open_dead_letters(
    connection: AbstractRobustConnection,
    names: Names,
    *,
    timeout: float,  # noqa: ASYNC109 - for each step, not for the block
) -> AsyncIterator[DeadLetters]:
    """Opens the dead queue; what was taken and not settled is in its old place again when the block ends.

    Args:
        connection: To the broker.
        names: The installation's names.
        timeout: Seconds for each answer of the broker.

    Raises:
        BrokerForbids: the user may not read it.
        TopologyMismatch: there is no dead queue.
        BrokerUnreachable: the connection was lost in the middle.
    """
    try:
        async with connection.channel(publisher_confirms=False) as reading:
            try:
                queue = await reading.declare_queue(names.queue(DEAD_QUEUE), passive=True, timeout=timeout)
            except AMQPChannelError as error:
                raise TopologyMismatch(
                    f"The broker is not set up: {error}. Run “sendoff migrate”."
                ) from error
            try:
                letters = DeadLetters(queue, connection, names, timeout)
                await letters.look_ahead()
                yield letters
            finally:
                await _give_back(reading, timeout)
    except ChannelAccessRefused as error:
        raise BrokerForbids(error) from error
    except ERRORS as error:
        if classify(error) is Failure.BROKEN:
            raise
        raise BrokerUnreachable(
            f"The broker went out of reach: {str(error) or type(error).__name__}."
            " What was not dealt with is still in the dead queue."
        ) from error


async def _give_back(channel: AbstractRobustChannel, timeout: float) -> None:  # noqa: ASYNC109 - as above
    """Gives back all that was not settled, in its order.

    Closing the channel would do the same, but only some time after the broker has said that it is closed: who
    looks again at once would find the rest in front.
    """
    with ignoring_outage():
        async with asyncio.timeout(timeout):
            underlay = await channel.get_underlay_channel()
            await underlay.basic_nack(0, multiple=True, requeue=True)


def origin(headers: Mapping[str, Any], names: Names) -> Origin:
    """Reads from a dead message's headers why it is dead and where it was first published to.

    Any publisher can write any header. What the broker wrote is known by its `x-death`: if there is one,
    nothing else counts. A publisher can forge an entry that the broker then carries on, so the exchange and
    the key must be those of the very queue that the message died in.

    Args:
        headers: A worker's own three, or `x-death`, the broker's list of what happened, newest first.
        names: The installation's names.
    """
    if "x-death" in headers:
        deaths = headers["x-death"]
        last = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
        reason = f"The broker gave it up ({last.get('reason')}), from the queue {last.get('queue')}."
        exchange, keys = last.get("exchange"), last.get("routing-keys")
        for key in keys if isinstance(keys, list) else ():
            if isinstance(exchange, str) and isinstance(key, str):
                queue = names.queue_behind(exchange, key)
                if queue is not None and queue == last.get("queue"):
                    return Origin(reason, exchange, key, vouched=True)
        return Origin(reason, None, None, vouched=True)
    reason = str(headers.get(HEADER_REASON) or _NO_REASON)
    if HEADER_EXCHANGE not in headers or HEADER_ROUTING_KEY not in headers:
        return Origin(reason, None, None, vouched=False)
    return Origin(reason, str(headers[HEADER_EXCHANGE]), str(headers[HEADER_ROUTING_KEY]), vouched=False)


def _again(message: AbstractIncomingMessage) -> Message:
    """Copies a message, without what the broker or a worker wrote on it when it died.

    Nor with its `user_id`: the broker lets nobody but that user publish it.
    """
    headers = {k: v for k, v in message.headers.items() if k not in _OURS and not k.startswith(_BROKERS)}
    return Message(
        message.body,
        headers=headers,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        delivery_mode=DeliveryMode.PERSISTENT,
        priority=message.priority,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        message_id=message.message_id,
        timestamp=message.timestamp,
        type=message.type,
        app_id=message.app_id,
    )
