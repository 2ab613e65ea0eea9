"""The accounts of a publisher: which publishes of a channel the broker has not spoken about yet."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.amqp.bulk.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.amqp.bulk.errors import ConnectionLost
    from worker.amqp.messages import Outgoing


@dataclass(slots=True, eq=False)
class Flight:
    """Publishes that were written together.

    Attributes:
        messages: What was published.
        first: The tag of the first; the others follow.
        exchange: Their exchange.
        routing_key: Their routing key.
        written_at: When, on the loop's clock.
        returned: Whether the broker gave one of them back, since no queue takes it.
        refusal: Why the broker closed the channel, if it may have been for one of them.
        finished: Done when the broker has answered for each publish, or the channel is gone. Its result is
            the messages that must be published again, in their order.
    """

    messages: Sequence[Outgoing]
    first: int
    exchange: str
    routing_key: str
    written_at: float
    finished: asyncio.Future[list[Outgoing]]
    returned: bool = False
    refusal: ConnectionLost | None = None
    _done: int = 0  # how many of the first the broker has spoken about
    _ahead: set[int] = field(default_factory=set)  # the tags behind those that it has spoken about
    _refused: list[int] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The tag of the last."""
        return self.first + len(self.messages) - 1

    @property
    def open(self) -> int:
        """How many the broker has not spoken about."""
        return len(self.messages) - self._done - len(self._ahead)

    def confirmed(self, tag: int, *, multiple: bool, positive: bool) -> None:
        """Notes what the broker said about one, or about all up to it; what it says twice counts once."""
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
        """Tells who waits: with what was refused, and where the channel is `lost` with what is in doubt."""
        again = set(self._refused)
        if lost:
            doubtful = range(self.first + self._done, self.last + 1)
            again.update(t for t in doubtful if t not in self._ahead)
        if not self.finished.done():
            self.finished.set_result([self.messages[tag - self.first] for tag in sorted(again)])


class Confirms:
    """Counts the publishes of one channel, from its first."""

    def __init__(self) -> None:
        self._published = 0
        self._flights: deque[Flight] = deque()
        self.outstanding = 0
        """How many publishes the broker has not spoken about."""

    @property
    def oldest(self) -> Flight | None:
        """The flight that has waited longest."""
        return self._flights[0] if self._flights else None

    def add(self, messages: Sequence[Outgoing], exchange: str, routing_key: str) -> Flight:
        """Notes messages that are written at this moment."""
        loop = asyncio.get_running_loop()
        flight = Flight(
            messages, self._published + 1, exchange, routing_key, loop.time(), loop.create_future()
        )
        self._published += len(messages)
        self.outstanding += len(messages)
        self._flights.append(flight)
        return flight

    def confirmed(self, tag: int, *, multiple: bool, positive: bool) -> None:
        """Notes what the broker said about one publish, or about all up to it.

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
        """Notes that no queue takes what is published there.

        A return does not say which publish it means. That is no loss: all that share exchange and routing key
        share the fate.
        """
        for flight in self._flights:
            if flight.exchange == exchange and flight.routing_key == routing_key:
                flight.returned = True

    def abandon(self) -> list[Flight]:
        """Lands everything, since the channel is gone; returns what had not finished."""
        flights = [flight for flight in self._flights if flight.open]
        self._flights.clear()
        self.outstanding = 0
        for flight in flights:
            flight.finish(lost=True)
        return flights
