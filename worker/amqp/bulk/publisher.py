"""Publishing in bulk: persistent, mandatory, confirmed, within a window; an outage is waited for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog
from pamqp import commands

from worker.amqp.bulk.confirms import Confirms
from worker.amqp.bulk.connection import Events, connect
from worker.amqp.bulk.encoding import publishes
from worker.amqp.bulk.errors import AmqpChannelClosed, ConnectionLost
from worker.amqp.bulk.keeper import Keeper
from worker.amqp.errors import RECONNECT_INTERVAL
from worker.amqp.messages import Unroutable
from worker.domain.failures import Stopped
from worker.lifecycle import wait_any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.amqp.bulk.confirms import Flight
    from worker.amqp.bulk.encoding import Publishes
    from worker.amqp.messages import Outgoing

log = structlog.get_logger(__name__)

_PUBLISH: Final = (60, 40)
"""AMQP's class and method of a publish."""


class BulkPublisher:
    """Publishes over one connection of its own with confirms; may be used by any number of tasks."""

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
        """Takes where to publish; `start` connects.

        Args:
            url: `amqp://…` or `amqps://…`.
            name: What operators see in the broker's list of connections.
            window: The most publishes that wait for their confirm at once.
            timeout: Seconds for one confirm; after them the connection is given up and the publish is tried
                again, since nobody knows. While the broker takes no publishes, the time does not count.
            connect_timeout: Seconds for each attempt to connect.
            stop: Once it is set, a broker that is away is not waited for.
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
        """Whether the connection stands at this moment."""
        return self._keeper.current is not None

    async def start(self) -> None:
        """Connects.

        Raises:
            BrokerUnreachable: there is no broker at the address, or it does not let us in.
        """
        await self._keeper.start()

    async def watch(self) -> None:
        """Returns once it is closed; raises what the task that keeps the connection died of."""
        await self._keeper.watch()

    async def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Outgoing], *, mandatory: bool = True
    ) -> None:
        """Publishes messages, as `worker.amqp.messages.Publisher` says.

        Raises:
            Unroutable: no queue took one of them, or the broker refuses to publish there.
            ValueError: a name, an identifier or headers are too long for AMQP; some may be published.
            ConnectionLost: the publisher was closed.
            Stopped: `stop` is set while the broker is away; some may be published.
        """
        encoder = publishes(exchange, routing_key, mandatory=mandatory)
        rest = messages
        # Away or busy, the broker is waited for: there is nothing better to do until the process stops.
        while rest:
            flights: list[Flight] = []
            at = 0
            while at < len(rest) and not (mandatory and flights and flights[-1].returned):
                # In turns, so that a window that opens is filled by one task and not fought for.
                async with self._turn:
                    channel = await self._room(len(rest) - at)
                    flights.append(channel.send(encoder, rest, at, exchange, routing_key))
                at += len(flights[-1].messages)
            again = [message for flight in flights for message in await flight.finished]
            if mandatory and any(flight.returned for flight in flights):
                raise Unroutable(f"No queue takes {exchange!r} with the key {routing_key!r}.")
            refusals = [flight.refusal for flight in flights if flight.refusal is not None]
            if refusals:
                raise Unroutable(f"The broker refuses what is published to {exchange!r}: {refusals[0]}")
            if again:
                log.warning("publishing again", exchange=exchange, messages=len(again))
                if self.connected:
                    await asyncio.sleep(RECONNECT_INTERVAL)  # the broker refused them: it has its reasons
            rest = again

    async def close(self) -> None:
        """Closes the connection; who still publishes gets a ConnectionLost."""
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
        """Waits until the channel takes `wanted` messages, or half of a window: few writes, but large."""
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


class _AmqpChannel(Events):
    """What is under way on one connection."""

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
            # One of them is to blame. The broker names its exchange, if it is the exchange that is wrong;
            # otherwise all are suspects, and to repeat them would only close the next channel.
            named = [f for f in flights if f"'{f.exchange}'" in error.text]
            for flight in named or flights:
                flight.refusal = error

    def _look(self) -> None:
        """Gives the connection up if its oldest publish has waited too long."""
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
