"""Reads the broker's bytes, cut anywhere, as messages, confirms and rare frames.

It is a state machine without input or output. It holds at most one incomplete frame, one incomplete message,
and the messages of the bytes that it just got.
"""

from __future__ import annotations

import struct
from struct import Struct
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import pamqp.frame
from pamqp import commands
from pamqp.base import Frame

from worker.amqp import octets
from worker.amqp.bulk.errors import ProtocolError
from worker.amqp.bulk.layout import (
    ACK,
    BASIC,
    BODY,
    CHANNEL,
    CONTENT,
    DELIVER,
    F_APP_ID,
    F_CLUSTER_ID,
    F_CONTENT_ENCODING,
    F_CONTENT_TYPE,
    F_CORRELATION_ID,
    F_DELIVERY_MODE,
    F_EXPIRATION,
    F_HEADERS,
    F_MESSAGE_ID,
    F_PRIORITY,
    F_REPLY_TO,
    F_TIMESTAMP,
    F_TYPE,
    F_USER_ID,
    FRAME_END,
    FRAME_HEAD,
    FRAME_OVERHEAD,
    HEADER,
    HEARTBEAT,
    METHOD,
    NACK,
    method_key,
)
from worker.amqp.bulk.shape import Shape
from worker.amqp.messages import Incoming

if TYPE_CHECKING:
    from collections.abc import Mapping

V = TypeVar("V")

MOST_BODY: Final = 512 << 20
"""Bytes. RabbitMQ takes no larger message in any configuration."""

_HEAD: Final = FRAME_HEAD.size
_CLOSED: Final = -1

_DELIVER, _ACK, _NACK = method_key(DELIVER), method_key(ACK), method_key(NACK)
_CONFIRM = Struct(">QB").unpack_from
_CONFIRM_SIZE: Final = 13

_DIFFER: Final = F_CORRELATION_ID | F_REPLY_TO | F_EXPIRATION | F_MESSAGE_ID | F_TIMESTAMP | F_USER_ID
"""The properties that may differ within a stream. `Shape` handles message_id and timestamp."""

_Properties = tuple[str | None, str | None, str | None, str | None, "Mapping[str, Any]", int]
_NO_HEADERS: Final[Mapping[str, Any]] = MappingProxyType({})
_NO_PROPERTIES: Final[_Properties] = (None, None, None, None, _NO_HEADERS, 0)

_KEPT, _KEPT_BYTES = 256, 256
"""How many decoded routes and header tables are kept, and how long a table may be to be kept."""


class Sink(Protocol):
    """Gets what was read. An error that it raises ends the reading."""

    def delivered(self, batch: list[Incoming]) -> None:
        """Takes messages of `basic.deliver`, in their order."""

    def confirmed(self, tag: int, *, multiple: bool, positive: bool) -> None:
        """Takes a confirm (`positive`) or a refusal of one publish, or of all up to it."""

    def returned(self, frame: commands.Basic.Return) -> None:
        """Takes the notice of a message that no queue took."""

    def method(self, channel: int, frame: Frame) -> None:
        """Takes any other method."""


class Reader:
    """Reads one connection from its first byte.

    Attributes:
        frame_max: The largest frame that is accepted, in bytes.
    """

    def __init__(self, sink: Sink, source: Any) -> None:  # noqa: ANN401 - Incoming.channel names aiormq's
        """Takes the sink, and the value of `Incoming.channel`."""
        self._sink = sink
        self._source = source
        self.frame_max = 131_072
        self._channel = _CLOSED
        self._tail = bytearray()
        self._needed = _HEAD
        self._batch: list[Incoming] = []
        # The message that is being read: the kind of the next frame, then its parts.
        self._next = METHOD
        self._tag = 0
        self._route = ("", "")
        self._return: commands.Basic.Return | None = None
        self._properties = _NO_PROPERTIES
        self._size = 0
        self._body = bytearray()
        self._routes: dict[bytes, tuple[str, str]] = {}
        self._tables: dict[bytes, Mapping[str, Any]] = {}
        self._shape = Shape(source)

    def open_channel(self) -> None:
        """From now on only frames of the channel and of the connection are accepted."""
        self._channel = CHANNEL

    def feed(self, data: bytes) -> None:
        """Reads what arrived.

        Raises:
            ProtocolError: it is not AMQP; the reader cannot be used again.
            Anything that the sink raises; the reader cannot be used again.
        """
        if self._tail:
            self._tail += data
            if len(self._tail) < self._needed:
                return
            data = bytes(self._tail)
            self._tail.clear()
        at, end = 0, len(data)
        while end - at >= _HEAD:
            if self._next == METHOD:
                at = self._shape.read(data, at, end, self.frame_max, self._batch)
                if end - at < _HEAD:
                    break
            kind, channel, size = FRAME_HEAD.unpack_from(data, at)
            if size > self.frame_max - FRAME_OVERHEAD:
                raise ProtocolError(self._oversize(data, at, size))
            after = at + size + FRAME_OVERHEAD
            if after > end:
                break
            if data[after - 1] != FRAME_END:
                raise ProtocolError(f"A frame ends with the byte {data[after - 1]} instead of {FRAME_END}.")
            self._frame(kind, channel, data, at, after)
            at = after
        if at < end:
            self._tail += data[at:] if at else data
            self._needed = size + FRAME_OVERHEAD if end - at >= _HEAD else _HEAD
        self._hand_over()

    def _frame(self, kind: int, channel: int, data: bytes, at: int, after: int) -> None:
        start, stop = at + _HEAD, after - 1
        if channel == self._channel and kind in (METHOD, HEADER, BODY):
            if kind != self._next:
                raise ProtocolError(f"A frame of type {kind} came where type {self._next} belongs.")
            if kind == BODY:
                self._body_frame(data, start, stop)
            elif kind == HEADER:
                self._header_frame(data[start:stop])
            else:
                key = data[start : start + 4]
                if key == _DELIVER:
                    self._deliver(data, start, stop)
                elif key in (_ACK, _NACK):
                    if stop - start != _CONFIRM_SIZE:
                        raise ProtocolError("A confirm is too short or too long.")
                    self._hand_over()
                    tag, bits = _CONFIRM(data, start + 4)
                    self._sink.confirmed(tag, multiple=bool(bits & 1), positive=key == _ACK)
                else:
                    self._method(channel, data[at:after])
        elif channel == 0 and kind == METHOD:
            self._method(channel, data[at:after])
        elif channel or kind != HEARTBEAT or start != stop:
            raise ProtocolError(f"A frame of type {kind} came on the channel {channel}.")

    def _method(self, channel: int, data: bytes) -> None:
        self._hand_over()
        try:
            _, _, frame = pamqp.frame.unmarshal(data)
        except Exception as error:  # a decoder of unknown bytes may raise anything
            raise ProtocolError(f"A method cannot be read: {error}") from error
        if not isinstance(frame, Frame):
            raise ProtocolError("A method cannot be read.")
        if isinstance(frame, commands.Basic.Return) and channel:
            self._return = frame
            self._next = HEADER
        else:
            self._sink.method(channel, frame)

    def _deliver(self, data: bytes, start: int, stop: int) -> None:
        # The consumer's tag, the delivery's tag, a byte that says “redelivered”, exchange and routing key.
        at = start + 5 + data[start + 4]
        if at + 11 > stop:
            raise ProtocolError("A delivery is too short.")
        self._tag = int.from_bytes(data[at : at + 8], "big")
        route = data[at + 9 : stop]
        self._route = self._routes.get(route) or self._read_route(route)
        self._next = HEADER
        self._shape.learn_frame(data[start - _HEAD : at], data[at + 9 : stop + 1], self._route)

    def _read_route(self, data: bytes) -> tuple[str, str]:
        exchange_end = 1 + data[0]
        try:
            key_end = exchange_end + 1 + data[exchange_end]
        except IndexError as error:
            raise ProtocolError(f"The route of a delivery cannot be read: {error}") from error
        if key_end != len(data):
            raise ProtocolError("The route of a delivery is too short or too long.")
        exchange, key = data[1:exchange_end], data[exchange_end + 1 :]
        route = exchange.decode(errors="replace"), key.decode(errors="replace")
        _keep(self._routes, data, route)
        return route

    def _header_frame(self, data: bytes) -> None:
        try:
            class_id, weight, size, flags = CONTENT.unpack_from(data)
            if class_id != BASIC or weight:
                raise ProtocolError("A content header is of no kind that AMQP 0-9-1 knows.")
            if size > MOST_BODY:
                raise ProtocolError(f"A message of {size} bytes is announced; {MOST_BODY} are the most.")
        except struct.error as error:
            raise ProtocolError(f"A content header cannot be read: {error}") from error
        try:
            self._properties = self._read_properties(data, flags)
        except IndexError:
            # The frame says where they end, so that it costs the properties and not the connection.
            self._properties = _NO_PROPERTIES
        self._size = size
        self._next = BODY
        if not size:
            self._complete(b"")

    def _read_properties(self, data: bytes, flags: int) -> _Properties:  # noqa: C901, PLR0912 - one per property
        """Reads the properties of `Incoming` and skips others; an index beyond the end is an IndexError."""
        at = CONTENT.size
        headers = _NO_HEADERS
        correlation_id = reply_to = message_id = user_id = None
        priority = 0
        if flags & F_CONTENT_TYPE:
            at += 1 + data[at]
        if flags & F_CONTENT_ENCODING:
            at += 1 + data[at]
        if flags & F_HEADERS:
            stop = at + 4 + int.from_bytes(data[at : at + 4], "big")
            table, at = data[at:stop], stop
            headers = self._tables.get(table) or self._read_table(table)
        if flags & F_DELIVERY_MODE:
            at += 1
        if flags & F_PRIORITY:
            priority = data[at]
            at += 1
        if flags & F_CORRELATION_ID:
            stop = at + 1 + data[at]
            correlation_id, at = data[at + 1 : stop].decode(errors="replace"), stop
        if flags & F_REPLY_TO:
            stop = at + 1 + data[at]
            reply_to, at = data[at + 1 : stop].decode(errors="replace"), stop
        if flags & F_EXPIRATION:
            at += 1 + data[at]
        before_id = at
        if flags & F_MESSAGE_ID:
            stop = at + 1 + data[at]
            message_id, at = data[at + 1 : stop].decode(errors="replace"), stop
        after_time = at + 8
        if flags & F_TIMESTAMP:
            at += 8
        if flags & F_TYPE:
            at += 1 + data[at]
        if flags & F_USER_ID:
            stop = at + 1 + data[at]
            user_id, at = data[at + 1 : stop].decode(errors="replace"), stop
        if flags & F_APP_ID:
            at += 1 + data[at]
        if flags & F_CLUSTER_ID:
            at += 1 + data[at]
        if at == len(data) and flags & _DIFFER == F_MESSAGE_ID | F_TIMESTAMP:
            before = data[CONTENT.size : before_id]
            self._shape.learn_properties(flags, before, data[after_time:], headers, priority)
        return message_id, correlation_id, reply_to, user_id, headers, priority

    def _read_table(self, data: bytes) -> Mapping[str, Any]:
        headers = MappingProxyType(octets.table(data[4:]))
        if len(data) <= _KEPT_BYTES:
            _keep(self._tables, data, headers)
        return headers

    def _body_frame(self, data: bytes, start: int, stop: int) -> None:
        size = stop - start
        if size == self._size and not self._body:
            self._complete(data[start:stop])
            return
        if not size or len(self._body) + size > self._size:
            raise ProtocolError("The body of a message is longer than announced, or has an empty frame.")
        self._body += data[start:stop]
        if len(self._body) == self._size:
            body = bytes(self._body)
            self._body.clear()
            self._complete(body)

    def _complete(self, body: bytes) -> None:
        self._next = METHOD
        if self._return is not None:
            frame, self._return = self._return, None
            self._sink.returned(frame)
            return
        message_id, correlation_id, reply_to, user_id, headers, priority = self._properties
        exchange, key = self._route
        self._batch.append(
            Incoming(
                body,
                exchange,
                key,
                message_id,
                correlation_id,
                reply_to,
                user_id,
                headers,
                self._tag,
                self._source,
                priority,
            )
        )

    def _hand_over(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._sink.delivered(batch)

    def _oversize(self, data: bytes, at: int, size: int) -> str:
        if data.startswith(b"AMQP", at):
            return "The broker does not speak AMQP 0-9-1."
        return f"A frame of {size} bytes came; {self.frame_max} were agreed on as the most."


def _keep(kept: dict[bytes, V], key: bytes, value: V) -> None:
    if len(kept) >= _KEPT:
        kept.clear()
    kept[key] = value
