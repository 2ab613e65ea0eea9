"""One connection to the broker with its one AMQP channel, from the handshake to its end."""

from __future__ import annotations

import asyncio
import platform
from typing import TYPE_CHECKING, Any, Final, cast

import pamqp.header
import pamqp.heartbeat
import structlog
from pamqp import commands

from worker.amqp.bulk.address import read_address
from worker.amqp.bulk.encoding import WRITE_BYTES, method
from worker.amqp.bulk.errors import AmqpChannelClosed, ConnectionClosed, ConnectionLost, ProtocolError
from worker.amqp.bulk.layout import CHANNEL
from worker.amqp.bulk.reader import Reader
from worker.amqp.errors import BrokerUnreachable, no_virtual_host
from worker.amqp.properties import patch_pamqp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pamqp.base import Frame

    from worker.amqp.bulk.address import Address
    from worker.amqp.messages import Incoming

log = structlog.get_logger(__name__)

FRAME_MAX: Final = 131_072
"""Bytes of the largest frame that we propose. RabbitMQ proposes the same."""

_FRAME_MIN: Final = 4096
"""Bytes of a frame that every peer must accept (AMQP 0-9-1, 4.2.3)."""

_FAREWELL_SECONDS: Final = 5
"""Seconds that the end of a connection may take."""

_TICKS: Final = 2
"""How often in a heartbeat interval we check whether anything was sent and received."""
_SILENT_TICKS: Final = 2 * _TICKS
"""After two intervals without a byte we treat the peer as gone (AMQP 0-9-1, 4.2.7)."""

_CAPABILITIES: Final = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
}
_CANCEL_OK: Final = "accept_consumer_cancel_ok"
"""The capability of brokers that keep a consumer's tag until we answer their `basic.cancel`: RabbitMQ from
4.3.7 on. Others close the channel at such an answer."""

_OK, _SYNTAX_ERROR, _ACCESS_REFUSED, _NOT_ALLOWED = 200, 502, 403, 530


class Events:
    """What happens on an AMQP channel. Publisher and consumer override the methods that they need.

    Attributes:
        connection: The connection of this channel. Both end together.
    """

    connection: Connection

    def delivered(self, batch: list[Incoming]) -> None:
        """Takes messages of `basic.deliver`, in their order."""
        raise ProtocolError(
            f"The broker delivers {len(batch)} messages to a connection that consumes nothing."
        )

    def confirmed(self, tag: int, *, multiple: bool, positive: bool) -> None:  # noqa: ARG002
        """Takes a confirm (`positive`) or a refusal of one publish, or of all up to it."""
        raise ProtocolError(f"The broker confirms the publish {tag}, but nothing was published.")

    def returned(self, frame: commands.Basic.Return) -> None:
        """Takes the notice of a message that no queue took."""
        raise ProtocolError(f"The broker returns a message ({frame.reply_text}), but nothing was published.")

    def cancelled(self, tag: str) -> None:  # noqa: ARG002
        """Called when the broker ended a consumer."""
        raise ProtocolError("The broker cancels a consumer, but there is none.")

    def flow(self) -> None:
        """Called whenever `Connection.writable` may have changed."""

    def lost(self, error: ConnectionLost) -> None:
        """Called once, when the connection is lost."""


class Connection(asyncio.Protocol):
    """A connection; `connect` makes one.

    Attributes:
        lost: Done when the connection is lost. Its result says why.
        blocked: Whether the broker asked us not to publish, since it has too little memory or disk.
    """

    def __init__(self, address: Address, events: Events) -> None:
        """Takes the broker's address, and the object whose methods are called."""
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._events = events
        events.connection = self
        self._reader = Reader(self, events)
        self._transport: asyncio.Transport
        self._answers: tuple[list[str], asyncio.Future[Frame]] | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._silent = 0
        self._spoken = False
        self._paused = False
        self._answers_cancel = False
        self.blocked = False
        self.lost: asyncio.Future[ConnectionLost] = self._loop.create_future()

    @property
    def writable(self) -> bool:
        """Whether to publish now: the broker has not blocked us, and it reads as fast as we write."""
        return not (self.blocked or self._paused or self.lost.done())

    @property
    def frame_max(self) -> int:
        """The largest frame in bytes that both sides accept."""
        return self._reader.frame_max

    def write(self, data: bytes) -> None:
        """Sends whole frames; on a lost connection it does nothing."""
        if not self.lost.done():
            self._spoken = True
            self._transport.write(data)

    async def handshake(self, name: str) -> None:
        """Logs in and opens the channel.

        Args:
            name: What operators see in the broker's list of connections.

        Raises:
            ConnectionLost: the broker refused, or does not speak AMQP.
        """
        start = await self._ask(pamqp.header.ProtocolHeader().marshal(), ["Connection.Start"])
        assert isinstance(start, commands.Connection.Start)  # noqa: S101 - _ask took no other
        capabilities = (start.server_properties or {}).get("capabilities")
        self._answers_cancel = isinstance(capabilities, dict) and bool(capabilities.get(_CANCEL_OK))
        address = self._address
        properties: dict[str, Any] = {
            "product": "sendoff",
            "platform": f"Python {platform.python_version()}",
            "connection_name": name,
            "capabilities": _CAPABILITIES,
        }
        login = commands.Connection.StartOk(
            properties, "PLAIN", f"\0{address.user}\0{address.password}", "en_US"
        )
        tune = await self._ask(method(login, 0), ["Connection.Tune"])
        assert isinstance(tune, commands.Connection.Tune)  # noqa: S101 - _ask took no other
        self._reader.frame_max = min(tune.frame_max or FRAME_MAX, FRAME_MAX)
        if self.frame_max < _FRAME_MIN:
            raise ProtocolError(f"The broker wants frames of {self.frame_max} bytes at most.")
        # 0 from the broker leaves the choice to us. 0 from us, in the URL, means no heartbeats.
        heartbeat = min(tune.heartbeat or address.heartbeat, address.heartbeat)
        self.write(method(commands.Connection.TuneOk(CHANNEL, self.frame_max, heartbeat), 0))
        if heartbeat:
            self._tick(heartbeat / _TICKS)
        await self.call(commands.Connection.Open(address.vhost), 0)
        self._reader.open_channel()
        await self.call(commands.Channel.Open())

    async def call(self, frame: Frame, channel: int = CHANNEL) -> Frame:
        """Sends a method and waits for its answer; one at a time.

        Raises:
            ConnectionLost: the broker ended the connection or the channel.
        """
        return await self._ask(method(frame, channel), frame.valid_responses)

    async def close(self) -> None:
        """Sends `connection.close` behind all that was written, and waits until the broker has read it."""
        if not self.lost.done():
            try:
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await self.call(commands.Connection.Close(_OK, "bye", 0, 0), 0)
            except (TimeoutError, ConnectionLost) as error:
                log.debug("the broker did not say goodbye", because=str(error))
            self.end(ConnectionLost("The connection was closed by us."))

    def end(self, error: ConnectionLost, final_frame: Frame | None = None) -> None:
        """Ends the connection now.

        Args:
            error: Why.
            final_frame: A frame to send first, if the connection can still send.
        """
        if self.lost.done():
            return
        if final_frame is not None:
            self._transport.write(method(final_frame, 0))
            self._transport.close()
            self._loop.call_later(_FAREWELL_SECONDS, self._transport.abort)
        else:
            self._transport.abort()
        self._over(error)

    async def _ask(self, data: bytes, answers: list[str]) -> Frame:
        if self.lost.done():
            raise self.lost.result()
        answer: asyncio.Future[Frame] = self._loop.create_future()
        self._answers = (answers, answer)
        self.write(data)
        try:
            return await answer
        finally:
            self._answers = None

    def _over(self, error: ConnectionLost) -> None:
        if self.lost.done():
            return
        self.lost.set_result(error)
        if self._beat is not None:
            self._beat.cancel()
        if self._answers is not None and not self._answers[1].done():
            self._answers[1].set_exception(error)
        self._events.lost(error)
        self._events.flow()

    def _tick(self, seconds: float) -> None:
        if self._silent >= _SILENT_TICKS:
            self.end(ConnectionLost("The broker has been silent for two heartbeats."))
            return
        self._silent += 1
        if not self._spoken:
            self._transport.write(pamqp.heartbeat.Heartbeat().marshal())
        self._spoken = False
        self._beat = self._loop.call_later(seconds, self._tick, seconds)

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        # A cast, since uvloop's transports are not subclasses.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_BYTES)

    def data_received(self, data: bytes) -> None:
        """Reads bytes. Any fault in them ends the connection."""
        if self.lost.done():
            return
        self._silent = 0
        try:
            self._reader.feed(data)
        except ConnectionClosed as error:
            self.end(error, commands.Connection.CloseOk())
        except ProtocolError as error:
            self.end(error, commands.Connection.Close(_SYNTAX_ERROR, str(error)[:100], 0, 0))
        except ConnectionLost as error:
            self.end(error, commands.Connection.Close(_OK, "bye", 0, 0))

    def pause_writing(self) -> None:
        """Called when the broker reads more slowly than we write."""
        self._paused = True

    def resume_writing(self) -> None:
        """Called when the broker has read enough."""
        self._paused = False
        self._events.flow()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the socket is closed."""
        self._over(ConnectionLost(f"The connection broke: {exc or 'the broker hung up'}."))

    # Called by the reader.

    def delivered(self, batch: list[Incoming]) -> None:
        """Passes messages on."""
        self._events.delivered(batch)

    def confirmed(self, tag: int, *, multiple: bool, positive: bool) -> None:
        """Passes a confirm on."""
        self._events.confirmed(tag, multiple=multiple, positive=positive)

    def returned(self, frame: commands.Basic.Return) -> None:
        """Passes a return on."""
        self._events.returned(frame)

    def method(self, channel: int, frame: Frame) -> None:
        """Takes the rare methods: answers, closes, and those that block or unblock publishing."""
        if self._answers is not None and frame.name in self._answers[0]:
            # Nobody waits for this answer: the task that asked was cancelled just now.
            if not self._answers[1].done():
                self._answers[1].set_result(frame)
        elif isinstance(frame, commands.Connection.Close) and channel == 0:
            raise ConnectionClosed(frame.reply_code or 0, frame.reply_text)
        elif isinstance(frame, (commands.Connection.Blocked, commands.Connection.Unblocked)) and channel == 0:
            self.blocked = isinstance(frame, commands.Connection.Blocked)
            log.warning(
                "the broker takes no publishes" if self.blocked else "the broker takes publishes again"
            )
            self._events.flow()
        elif isinstance(frame, commands.Channel.Close) and channel == CHANNEL:
            self.write(method(commands.Channel.CloseOk()))
            refused = frame.class_id or 0, frame.method_id or 0
            raise AmqpChannelClosed(frame.reply_code or 0, frame.reply_text, refused)
        elif isinstance(frame, commands.Basic.Cancel) and channel == CHANNEL:
            if self._answers_cancel:
                self.write(method(commands.Basic.CancelOk(frame.consumer_tag)))
            self._events.cancelled(frame.consumer_tag or "")
        else:
            raise ProtocolError(f"The broker sent {frame.name}, which nobody asked for.")


async def connect(
    url: str,
    events: Events,
    prepare: Sequence[Frame],
    *,
    name: str,
    timeout: float,  # noqa: ASYNC109 - for all steps together
) -> None:
    """Opens a connection and its AMQP channel, and sets `events.connection`.

    Args:
        url: `amqp://…` or `amqps://…`.
        events: Its methods are called for what happens on the connection.
        prepare: AMQP methods to call first, in order.
        name: What operators see in the broker's list of connections.
        timeout: Seconds for all of it.

    Raises:
        BrokerUnreachable: there is no broker at the address, or it refuses our login.
        AmqpChannelClosed: the broker refused one of `prepare`.
    """
    patch_pamqp()
    try:
        address = read_address(url)
        async with asyncio.timeout(timeout):
            tls = await asyncio.to_thread(address.tls) if address.secure else None
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(
                lambda: Connection(address, events), address.host, address.port, ssl=tls
            )
            try:
                await connection.handshake(name)
                for frame in prepare:
                    await connection.call(frame)
            except BaseException as error:
                connection.end(ConnectionLost(f"The connection was not finished: {error!r}"))
                raise
    except AmqpChannelClosed:
        raise
    except (OSError, ConnectionLost, ValueError) as error:
        if isinstance(error, ConnectionClosed) and error.code == _ACCESS_REFUSED:
            raise BrokerUnreachable(
                f"The broker refuses the user or password of SENDOFF_AMQP_URL: {error}"
            ) from error
        if isinstance(error, ConnectionClosed) and error.code == _NOT_ALLOWED:
            raise BrokerUnreachable(no_virtual_host(url)) from error
        reason = str(error) or type(error).__name__
        raise BrokerUnreachable(f"The broker is out of reach: {reason}") from error
