"""Publishing in bulk: persistent, mandatory, confirmed, within a window. It waits during an outage."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog
from pamqp import commands

from worker.amqp.bulk.confirms import Confirms
from worker.amqp.bulk.connection import Events, connect
from worker.amqp.bulk.encoding import publishes
from worker.amqp.bulk.errors import FORBIDDEN, NOT_FOUND, AmqpChannelClosed, ConnectionLost
from worker.amqp.bulk.keeper import Keeper
from worker.amqp.errors import RECONNECT_INTERVAL, BrokerForbids
from worker.amqp.messages import MessageRefused, Unroutable
from worker.crashing import crash_point
from worker.domain.failures import Stopped
from worker.lifecycle import wait_any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.amqp.bulk.confirms import Flight
    from worker.amqp.bulk.encoding import Publishes
    from worker.amqp.messages import Outgoing

log = structlog.get_logger(__name__)

_PUBLISH: Final = (60, 40)
"""AMQP's numbers of the class and the method of a publish."""


class BulkPublisher:
    """Publishes with confirms over a connection of its own. Any number of tasks may use it."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        window: int,
        timeout: float,
        connect_timeout: float,
        stop: asyncio.Event | None = None,
    ) -> None:
        """Takes the broker's address; `start` connects.

        Args:
            url: `amqp://…` or `amqps://…`.
            name: What operators see in the broker's list of connections.
            window: The most publishes without a confirm.
            timeout: Seconds for one confirm. After that the connection is closed and the message is published
                again, since it may be lost. The time does not count while the broker blocks publishing.
            connect_timeout: Seconds for each attempt to connect.
            stop: After it is set, `publish` does not wait for a broker that is away.
        """
        self._url = url
        self._name = name
        self._window = window
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._stop = stop or asyncio.Event()
        self._closed = False
        self._keeper: Keeper[_AmqpChannel] = Keeper(name, self._open)

    @property
    def connected(self) -> bool:
        """Whether the connection is open now."""
        return self._keeper.current is not None

    @property
    def blocked(self) -> bool:
        """Whether the broker takes no publishes at this moment; it says so at the first of them."""
        return self._keeper.current is not None and self._keeper.current.connection.blocked

    async def start(self, *, patient: bool = False) -> None:
        """Connects.

        Args:
            patient: Whether it also starts while the broker is away, and connects when it is there.

        Raises:
            BrokerUnreachable: there is no broker at the address, or it refuses our login.
        """
        await self._keeper.start(patient=patient)

    async def watch(self) -> None:
        """Returns when the publisher is closed; raises the error that ended its connection task."""
        await self._keeper.watch()

    async def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Outgoing], *, mandatory: bool = True
    ) -> None:
        """Publishes messages, as `worker.amqp.messages.Publisher` says.

        Raises:
            Unroutable: no queue took one of them, or there is no such exchange.
            MessageRefused: the broker refuses one of them.
            BrokerForbids: the broker user may not publish there.
            ValueError: a name, an identifier or headers are too long for AMQP; some may be published.
            ConnectionLost: the publisher was closed.
            Stopped: `stop` is set while the broker is away; some may be published.
        """
        encoder = publishes(exchange, routing_key, mandatory=mandatory)
        rest = messages
        # We wait for a broker that is away or busy: there is nothing better to do until the process stops.
        while rest:
            flights: list[Flight] = []
            at = 0
            while at < len(rest) and not (mandatory and flights and flights[-1].returned):
                # One task at a time, so that one task fills a window that opens.
                async with self._turn:
                    channel = await self._room(len(rest) - at)
                    flights.append(channel.send(encoder, rest, at, exchange, routing_key))
                crash_point("publish.written")
                at += len(flights[-1].messages)
            again = [message for flight in flights for message in await flight.finished]
            if mandatory and any(flight.returned for flight in flights):
                raise Unroutable(f"No queue takes {exchange!r} with the key {routing_key!r}.")
            refusals = [flight.refusal for flight in flights if flight.refusal is not None]
            if refusals:
                raise _refused(exchange, refusals[0])
            if again:
                log.warning("publishing again", exchange=exchange, messages=len(again))
                if self.connected:
                    await asyncio.sleep(RECONNECT_INTERVAL)  # the broker refused them; it may accept later
            rest = again

    async def close(self) -> None:
        """Closes the connection. A `publish` under way raises ConnectionLost."""
        self._closed = True
        self._changed.set()
        await self._keeper.close()

    async def _open(self) -> _AmqpChannel:
        channel = _AmqpChannel(self._window, self._timeout, self._changed.set)
        await connect(
            self._url,
            channel,
            [commands.Confirm.Select()],
            name=self._name,
            timeout=self._connect_timeout,
        )
        return channel

    async def _room(self, wanted: int) -> _AmqpChannel:
        """Waits until there is room for `wanted` messages or half of a window: few writes, but large."""
        least = min(wanted, (self._window + 1) // 2)
        while True:
            if self._closed:
                raise ConnectionLost("The publisher was closed.")
            channel = self._keeper.current
            if channel is not None and channel.connection.writable and channel.room >= least:
                return channel
            self._changed.clear()
            if channel is not None and not channel.connection.lost.done():
                await self._changed.wait()
            elif self._stop.is_set():
                raise Stopped("The process stops while the broker is away.")
            else:
                await wait_any(self._changed, self._stop)


def _refused(exchange: str, refusal: AmqpChannelClosed) -> Exception:
    if refusal.code == NOT_FOUND:
        return Unroutable(f"There is no exchange {exchange!r}: {refusal}.")
    if refusal.code == FORBIDDEN:
        return BrokerForbids(refusal)
    return MessageRefused(f"The broker refuses what is published to {exchange!r}: {refusal}.")


class _AmqpChannel(Events):
    """The publishes of one connection."""

    def __init__(self, window: int, timeout: float, changed: Callable[[], None]) -> None:
        self._window = window
        self._timeout = timeout
        self._changed = changed
        self._confirms = Confirms()
        self._loop = asyncio.get_running_loop()
        self._unblocked = 0.0
        self._watch: asyncio.TimerHandle | None = None

    @property
    def room(self) -> int:
        return self._window - self._confirms.outstanding

    def send(
        self, encoder: Publishes, messages: Sequence[Outgoing], first: int, exchange: str, routing_key: str
    ) -> Flight:
        data, count = encoder.encode(messages, first, self.room, self.connection.frame_max)
        flight = self._confirms.add(messages[first : first + count], exchange, routing_key)
        self.connection.write(data)
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout, self._look)
        return flight

    def confirmed(self, tag: int, *, multiple: bool, positive: bool) -> None:
        self._confirms.confirmed(tag, multiple=multiple, positive=positive)
        self._changed()

    def returned(self, frame: commands.Basic.Return) -> None:
        self._confirms.returned(frame.exchange or "", frame.routing_key or "")

    def flow(self) -> None:
        if not self.connection.blocked:
            self._unblocked = self._loop.time()
        self._changed()

    def lost(self, error: ConnectionLost) -> None:
        if self._watch is not None:
            self._watch.cancel()
        flights = self._confirms.abandon()
        if isinstance(error, AmqpChannelClosed) and error.method == _PUBLISH:
            # One of them is the cause. If its exchange is wrong, the broker names the exchange. Otherwise any
            # of them may be the cause, and to repeat them would close the next channel too.
            named = [f for f in flights if f"'{f.exchange}'" in error.text]
            for flight in named or flights:
                flight.refusal = error

    def _look(self) -> None:
        """Ends the connection if its oldest publish has waited too long."""
        self._watch = None
        oldest = self._confirms.oldest
        if oldest is None:
            return
        now = self._loop.time()
        since = now if self.connection.blocked else max(oldest.written_at, self._unblocked)
        if now - since >= self._timeout:
            self.connection.end(ConnectionLost(f"The broker has not confirmed within {self._timeout} s."))
        else:
            self._watch = self._loop.call_later(since + self._timeout - now, self._look)
