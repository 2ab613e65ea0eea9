"""The dead queue for operators: lists its messages and their reasons, publishes them again, or removes them.

Messages are taken without an acknowledgement. At the end, those that were not acknowledged go back to the
queue. Two operators who do this at the same time do not see each other's messages, and lose none.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aio_pika import DeliveryMode, Message
from aio_pika.exceptions import AMQPChannelError, DeliveryError, PublishError
from aiormq.exceptions import ChannelAccessRefused
from pamqp import encode

from contracts.routing import DEAD_QUEUE, HEADER_EXCHANGE, HEADER_REASON, HEADER_ROUTING_KEY
from worker.amqp.errors import BrokerForbids, BrokerUnreachable
from worker.amqp.octets import short
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
_ACKNOWLEDGED_AT_ONCE: Final = 16
"""Acknowledgements that are sent before the queue must answer. RabbitMQ 3.10 gives 32 of them to a quorum
queue, keeps the others until the queue has applied these, and forgets them if the channel closes before."""
_HEADERS_MOST: Final = 120_000
"""Octets of headers that are published again: with the other properties they have to fit into one frame."""
_NO_REASON: Final = "It does not say why it is here."


class CannotReplay(Exception):
    """A message cannot be replayed. It stays in the dead queue; the text says why."""


class Origin(NamedTuple):
    """Why a message is dead, and where it came from."""

    reason: str
    """A sentence: the worker's reason, or what the broker says."""
    exchange: str | None
    """The exchange and the routing key of its first publish; None if nobody knows."""
    routing_key: str | None
    vouched: bool
    """Whether the broker says so. Otherwise only the headers say so, and any publisher can write headers."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message in the dead queue."""

    position: int
    """The position in the queue; the oldest message is 1."""
    origin: Origin
    """Why it is dead, and where it came from."""
    message: AbstractIncomingMessage


class DeadLetters:
    """The dead queue over one AMQP channel; `open_dead_letters` makes it."""

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
        self._acknowledged = 0
        self.total = queue.declaration_result.message_count or 0
        """The number of messages when it was opened."""

    async def take(self) -> DeadLetter | None:
        """Takes the next message, the oldest first; None after the last of `total`.

        Later messages are not taken, so that a message that fails again after its replay does not come back
        forever.
        """
        if not self._ahead and self._taken < self.total:
            await self.look_ahead(self.total - self._taken)
        if not self._ahead:
            return None
        message = self._ahead.popleft()
        self._taken += 1
        return DeadLetter(self._taken, origin(message.headers, self._names), message)

    async def look_ahead(self, most: int = LOOKED_AT) -> None:
        """Takes the next messages: at most `most`, and at most `LOOKED_AT`."""
        while len(self._ahead) < min(most, LOOKED_AT):
            message = await self._queue.get(fail=False, timeout=self._timeout)
            if message is None:
                break
            self._ahead.append(message)
        # The broker's count is later than the messages that it returns.
        self.total = max(self.total, self._taken + len(self._ahead))

    async def replay(self, letter: DeadLetter) -> None:
        """Publishes a message again to its first exchange, and removes it after the broker's confirm.

        If the connection is lost in between, the message is in both queues. Each of our services accepts a
        message twice.

        Raises:
            CannotReplay: nobody vouches for where it came from, that is no place of ours, nothing takes it
                there, or its headers are too large.
        """
        _, exchange_name, routing_key, _ = letter.origin
        if exchange_name is None or routing_key is None:
            raise CannotReplay("Nobody vouches for where it was first published to.")
        if self._names.queue_behind(exchange_name, routing_key) is None:
            raise CannotReplay(
                f"Its headers claim the exchange “{exchange_name}” with the key “{routing_key}”:"
                " no queue of ours is behind them."
            )
        again = _again(letter.message)
        if self._publishing is None:
            self._publishing = self._connection.channel(on_return_raises=True)
            await self._publishing.initialize(timeout=self._timeout)
        exchange = await self._publishing.get_exchange(exchange_name, ensure=False)
        where = f"the exchange “{exchange_name}” with the key “{routing_key}”"
        try:
            await exchange.publish(again, routing_key, timeout=self._timeout)
        except PublishError as error:
            raise CannotReplay(f"No queue takes {where}.") from error
        except AMQPChannelError as error:
            self._publishing = None  # the broker has closed the channel
            raise CannotReplay(f"The broker does not take it to {where}: {error}.") from error
        except DeliveryError as error:
            raise CannotReplay(f"The broker refused it for {where}.") from error
        await self._acknowledge(letter)

    async def drop(self, letter: DeadLetter) -> None:
        """Removes a message permanently."""
        await self._acknowledge(letter)

    async def _acknowledge(self, letter: DeadLetter) -> None:
        """Acknowledges a message, and waits for the queue now and then."""
        await letter.message.ack()
        self._acknowledged += 1
        if self._acknowledged % _ACKNOWLEDGED_AT_ONCE == 0:
            later = await self._queue.get(fail=False, timeout=self._timeout)
            if later is not None and self._taken + len(self._ahead) < self.total:
                self._ahead.append(later)


@asynccontextmanager
async def open_dead_letters(
    connection: AbstractRobustConnection,
    names: Names,
    *,
    timeout: float,  # noqa: ASYNC109 - for each step, not for the block
) -> AsyncIterator[DeadLetters]:
    """Opens the dead queue.

    When the block ends, messages that were not acknowledged have their old places again.

    Args:
        connection: The connection to the broker.
        names: The installation's names.
        timeout: Seconds for each answer of the broker.

    Raises:
        BrokerForbids: the user may not read it.
        TopologyMismatch: there is no dead queue.
        BrokerUnreachable: the connection was lost.
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
    """Gives back all messages that were not acknowledged, in their order.

    Closing the channel would do the same, but only some time after the broker says that it is closed. A new
    look within this time would find the other messages first.
    """
    with ignoring_outage():
        async with asyncio.timeout(timeout):
            underlay = await channel.get_underlay_channel()
            await underlay.basic_nack(0, multiple=True, requeue=True)


def origin(headers: Mapping[str, Any], names: Names) -> Origin:
    """Reads from a dead message's headers why it is dead and where it was first published.

    Any publisher can write any header. The broker writes `x-death`: if there is one, the other headers do not
    count. A publisher can forge an entry, and the broker keeps it. So the exchange and the key must be bound
    to the queue that the message died in.

    Args:
        headers: The three headers of a worker, or `x-death`, the broker's list of events, newest first.
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
    reason = _text(headers.get(HEADER_REASON) or _NO_REASON)
    if HEADER_EXCHANGE not in headers or HEADER_ROUTING_KEY not in headers:
        return Origin(reason, None, None, vouched=False)
    return Origin(reason, _text(headers[HEADER_EXCHANGE]), _text(headers[HEADER_ROUTING_KEY]), vouched=False)


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _again(message: AbstractIncomingMessage) -> Message:
    """Copies a message, without the headers that the broker or a worker added when it died.

    Nor with its `user_id`: the broker lets nobody but that user publish it. A header that pamqp reads and
    cannot write, such as a number with 200 decimals, is left out.
    """
    headers: dict[str, Any] = {}
    for name, value in message.headers.items():
        if name not in _OURS and not name.startswith(_BROKERS):
            writable = _writable(value)
            with suppress(TypeError, ValueError, ArithmeticError, struct.error):
                encode.encode_table_value(writable)
                headers[name] = writable
    if len(encode.field_table(headers)) > _HEADERS_MOST:
        raise CannotReplay(f"Its headers take more than {_HEADERS_MOST} octets.")

    def cut(text: str | None) -> str | None:
        return short(text) if text else None

    return Message(
        message.body,
        headers=headers,
        content_type=cut(message.content_type),
        content_encoding=cut(message.content_encoding),
        delivery_mode=DeliveryMode.PERSISTENT,
        priority=message.priority,
        correlation_id=cut(message.correlation_id),
        reply_to=cut(message.reply_to),
        message_id=cut(message.message_id),
        timestamp=message.timestamp,
        type=cut(message.type),
        app_id=cut(message.app_id),
    )


def _writable(value: Any) -> Any:  # noqa: ANN401 - a header's value is of any type
    """Returns a header's value for pamqp, which reads octets that are no text as `bytes` and writes none."""
    if isinstance(value, bytes):
        return bytearray(value)
    if isinstance(value, list):
        return [_writable(one) for one in value]
    if isinstance(value, dict):
        return {name: _writable(one) for name, one in value.items()}
    return value
