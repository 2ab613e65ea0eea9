"""Counts the publishes of an AMQP channel that the broker has not confirmed or refused yet."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.amqp.bulk.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.amqp.bulk.errors import AmqpChannelClosed
    from worker.amqp.messages import Outgoing


@dataclass(slots=True, eq=False)
class Flight:
    """Messages that were published together.

    Attributes:
        messages: The messages.
        first: The delivery tag of the first. The others have the next ones.
        exchange: Their exchange.
        routing_key: Their routing key.
        written_at: When they were written, by the loop's clock.
        returned: Whether the broker returned one of them, since no queue takes it.
        refusal: Why the broker closed the AMQP channel, if one of them may be the cause.
        finished: Done when the broker has answered for each message, or the channel is closed. Its result is
            the messages that must be published again, in their order.
    """

    messages: Sequence[Outgoing]
    first: int
    exchange: str
    routing_key: str
    written_at: float
    finished: asyncio.Future[list[Outgoing]]
    returned: bool = False
    refusal: AmqpChannelClosed | None = None
    _done: int = 0  # the broker has answered for so many of the first
    _ahead: set[int] = field(default_factory=set)  # answered tags behind an open one
    _refused: list[int] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The delivery tag of the last."""
        return self.first + len(self.messages) - 1

    @property
    def open(self) -> int:
        """How many messages the broker has not answered for."""
        return len(self.messages) - self._done - len(self._ahead)

    def confirmed(self, tag: int, *, multiple: bool, positive: bool) -> None:
        """Notes the broker's answer for one message, or for all up to it. A repeated answer counts once."""
        low = self.first + self._done
        if multiple:
            upto = min(tag, self.last)
            if not positive:
                self._refused += [t for t in range(low, upto + 1) if t not in self._ahead]
            low = max(low, upto + 1)
            if self._ahead:
                self._ahead = {t for t in self._ahead if t >= low}
        elif low <= tag <= self.last and tag not in self._ahead:
            if not positive:
                self._refused.append(tag)
            self._ahead.add(tag)
        while low in self._ahead:
            self._ahead.discard(low)
            low += 1
        self._done = low - self.first

    def finish(self, *, lost: bool = False) -> None:
        """Sets `finished` to the refused messages, with the unanswered ones if the channel is `lost`."""
        again = set(self._refused)
        if lost:
            doubtful = range(self.first + self._done, self.last + 1)
            again.update(t for t in doubtful if t not in self._ahead)
        if not self.finished.done():
            self.finished.set_result([self.messages[tag - self.first] for tag in sorted(again)])


class Confirms:
    """Counts the publishes of one AMQP channel, from its first."""

    def __init__(self) -> None:
        self._published = 0
        self._flights: deque[Flight] = deque()
        self.outstanding = 0
        """How many publishes the broker has not answered for."""

    @property
    def oldest(self) -> Flight | None:
        """The flight that has waited for the longest time."""
        return self._flights[0] if self._flights else None

    def add(self, messages: Sequence[Outgoing], exchange: str, routing_key: str) -> Flight:
        """Notes messages that are being written."""
        loop = asyncio.get_running_loop()
        flight = Flight(
            messages, self._published + 1, exchange, routing_key, loop.time(), loop.create_future()
        )
        self._published += len(messages)
        self.outstanding += len(messages)
        self._flights.append(flight)
        return flight

    def confirmed(self, tag: int, *, multiple: bool, positive: bool) -> None:
        """Notes the broker's answer for one publish, or for all up to it.

        Raises:
            ProtocolError: there was no such publish.
        """
        if not 0 < tag <= self._published:
            raise ProtocolError(f"The broker confirms the publish {tag}; there were {self._published}.")
        for flight in self._flights:
            if flight.first > tag:
                break
            if multiple or tag <= flight.last:
                before = flight.open
                flight.confirmed(tag, multiple=multiple, positive=positive)
                self.outstanding -= before - flight.open
                if not flight.open:
                    flight.finish()
                if not multiple:
                    break
        while self._flights and not self._flights[0].open:
            self._flights.popleft()

    def returned(self, exchange: str, routing_key: str) -> None:
        """Notes that no queue takes messages with this exchange and routing key.

        A `basic.return` does not say which publish it means. It does not matter: no message with this
        exchange and routing key reaches a queue.
        """
        for flight in self._flights:
            if flight.exchange == exchange and flight.routing_key == routing_key:
                flight.returned = True

    def abandon(self) -> list[Flight]:
        """Finishes every flight, since the channel is closed. Returns those that had not finished."""
        flights = [flight for flight in self._flights if flight.open]
        self._flights.clear()
        self.outstanding = 0
        for flight in flights:
            flight.finish(lost=True)
        return flights
