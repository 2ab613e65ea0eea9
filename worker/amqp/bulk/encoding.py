"""The bytes that we send.

Pamqp makes the rare frames; we make publishes and acknowledgements from templates.
"""

from __future__ import annotations

import time
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Final

import pamqp.frame
from pamqp import commands

from contracts.routing import CONTENT_TYPE, HEADER_SCHEMA_VERSION, SCHEMA_VERSION
from worker.amqp.bulk.layout import (
    ACK,
    BASIC,
    BODY,
    CHANNEL,
    CONTENT,
    F_APP_ID,
    F_CONTENT_TYPE,
    F_CORRELATION_ID,
    F_DELIVERY_MODE,
    F_HEADERS,
    F_MESSAGE_ID,
    F_PRIORITY,
    F_TIMESTAMP,
    F_TYPE,
    FRAME_END,
    FRAME_OVERHEAD,
    HEADER,
    HEADER_FRAME,
    METHOD,
)
from worker.amqp.messages import APP_ID

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pamqp.base import Frame

    from worker.amqp.messages import Outgoing

WRITE_BYTES: Final = 1 << 20
"""About how many bytes are written at once."""

_END: Final = bytes([FRAME_END])
_SHORT: Final = 255

# An acknowledgement: the frame's head; class, method, delivery tag, “multiple”; the frame's end.
_ACKNOWLEDGE = Struct(">BHIHHQ?B").pack
_HEADER = HEADER_FRAME.pack
# The end of one frame, and the beginning of a body's.
_BODY = Struct(">BBHI").pack
_LONG = Struct(">I").pack
_TIMESTAMP = Struct(">Q").pack

_ALWAYS: Final = F_CONTENT_TYPE | F_HEADERS | F_DELIVERY_MODE | F_TIMESTAMP | F_APP_ID

_PERSISTENT: Final = b"\x02"


def method(frame: Frame, channel: int = CHANNEL) -> bytes:
    """Encodes a rare frame."""
    return pamqp.frame.marshal(frame, channel)


def acknowledgement(tag: int, *, multiple: bool) -> bytes:
    """Encodes an acknowledgement of one delivery tag, or of all up to it."""
    return _ACKNOWLEDGE(METHOD, CHANNEL, 13, BASIC, ACK, tag, multiple, FRAME_END)


class Publishes:
    """Encodes publishes with one routing key, so that what is common to them is encoded once."""

    def __init__(self, exchange: str, routing_key: str, *, mandatory: bool) -> None:
        """Takes the properties that they share.

        Raises:
            ValueError, TypeError: AMQP cannot carry one of the names.
        """
        self._method = method(commands.Basic.Publish(0, exchange, routing_key, mandatory))

    def encode(
        self, messages: Sequence[Outgoing], first: int, most: int, frame_max: int
    ) -> tuple[bytes, int]:
        """Encodes messages until there are enough of them, or about `WRITE_BYTES`.

        Args:
            messages: All of them.
            first: The index of the first to encode.
            most: The most messages to encode; at least one is encoded.
            frame_max: The largest frame in bytes; longer bodies are split.

        Returns:
            The bytes, and the number of messages in them.

        Raises:
            ValueError: an identifier is over 255 bytes, or the headers do not fit into a frame.
        """
        piece = frame_max - FRAME_OVERHEAD
        parts: list[bytes] = []
        add = parts.append
        written, count = 0, 0
        plain = _front({})
        headers, front = None, plain
        tails: dict[str, tuple[int, bytes]] = {}
        for message in messages[first : first + most]:
            body = message.body
            if not message.headers:
                front = plain
            elif message.headers is not headers:
                # Messages that are published together mostly share the headers of one trace.
                headers, front = message.headers, _front(message.headers)
            found = tails.get(message.type)
            if found is None:
                found = tails[message.type] = _tail(message.type)
            flags, tail = found
            given, ids = _ids(message)
            flags |= given
            length = len(body)
            size = CONTENT.size + len(front) + len(ids) + len(tail)
            if size > piece:
                raise ValueError(f"The headers of a message take {size} bytes; a frame has {piece}.")
            add(self._method)
            add(_HEADER(HEADER, CHANNEL, size, BASIC, 0, length, flags))
            add(front)
            add(ids)
            add(tail)
            for part in (body,) if 0 < length <= piece else _split(body, piece):
                add(_BODY(FRAME_END, BODY, CHANNEL, len(part)))
                add(part)
            add(_END)
            count += 1
            written += size + length
            if written > WRITE_BYTES:
                break
        return b"".join(parts), count


@lru_cache(maxsize=256)
def publishes(exchange: str, routing_key: str, *, mandatory: bool) -> Publishes:
    """Returns the encoder for an exchange and a routing key. Few are in use, so encoders are kept.

    Raises:
        ValueError, TypeError: as `Publishes`.
    """
    return Publishes(exchange, routing_key, mandatory=mandatory)


def _split(body: bytes, piece: int) -> Iterator[bytes]:
    return (body[at : at + piece] for at in range(0, len(body), piece))


def _short(text: str, name: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > _SHORT:
        raise ValueError(f"A {name} may have 255 bytes; this has {len(encoded)}: {text[:40]}…")
    return bytes((len(encoded),)) + encoded


def _ids(message: Outgoing) -> tuple[int, bytes]:
    """Returns the flags and the properties that differ: priority, correlation_id, message_id."""
    flags, ids = 0, b""
    if message.priority is not None:
        ids = bytes((message.priority,))
        flags = F_PRIORITY
    if message.correlation_id:
        ids += _short(message.correlation_id, "correlation_id")
        flags |= F_CORRELATION_ID
    if message.message_id:
        ids += _short(message.message_id, "message_id")
        flags |= F_MESSAGE_ID
    return flags, ids


def _front(headers: Mapping[str, str]) -> bytes:
    """Returns the properties that come before the identifiers: content type, headers, delivery mode."""
    version = b"" if HEADER_SCHEMA_VERSION in headers else _VERSION
    table = version + b"".join(
        _short(name, "header's name") + b"S" + _LONG(len(encoded := value.encode())) + encoded
        for name, value in headers.items()
    )
    return _CONTENT_TYPE + _LONG(len(table)) + table + _PERSISTENT


def _tail(kind: str) -> tuple[int, bytes]:
    """Returns the flags without the identifiers', and the properties behind them: timestamp, type, app_id."""
    now = _TIMESTAMP(int(time.time()))
    if not kind:
        return _ALWAYS, now + _APP_ID
    return _ALWAYS | F_TYPE, now + _short(kind, "type") + _APP_ID


_CONTENT_TYPE: Final = _short(CONTENT_TYPE, "content_type")
_APP_ID: Final = _short(APP_ID, "app_id")
_VERSION: Final = _short(HEADER_SCHEMA_VERSION, "header's name") + b"l" + Struct(">q").pack(SCHEMA_VERSION)
