"""Messages that no library writes: any octets in any field, and a publisher that survives what is refused."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import TYPE_CHECKING, NamedTuple

from pamqp import commands

from tests.support.bulk_frames import raw
from tests.support.results import result
from tests.support.tracking import event
from worker.amqp.bulk.connection import Events, connect

if TYPE_CHECKING:
    from random import Random

    from worker.amqp.bulk.errors import ConnectionLost

SECONDS = 20
STRANGER = 2**62
"""The number of no delivery."""
_PIECE = 100_000
_DEPTH = 5

_TEXTS = (
    b"",
    b"x",
    b"a" * 255,
    b"\xff" * 100,
    b"\xff" * 255,
    "é".encode() * 127 + b"\xc3",
    b"\xed\xa0\x80",
    b"nul\x00nul",
    b"\x1b[31mred\x1b[0m\r\n",
    b"\xf4\x90\x80\x80",
)
_FIXED = {b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"I": 4, b"i": 4, b"l": 8, b"L": 8, b"f": 4, b"d": 8}
_NAMES = (
    b"x-death",
    b"x-delivery-count",
    b"x-sendoff-reason",
    b"x-sendoff-exchange",
    b"x-sendoff-routing-key",
    b"traceparent",
    b"authorization",
    b"schema_version",
)


class Raw(NamedTuple):
    """A message as octets."""

    exchange: bytes
    key: bytes
    properties: bytes
    """The flags and what follows them."""
    body: bytes

    def frames(self) -> bytes:
        publish = b"\x00\x3c\x00\x28\x00\x00" + _short(self.exchange) + _short(self.key) + b"\x00"
        header = b"\x00\x3c\x00\x00" + struct.pack(">Q", len(self.body)) + self.properties
        pieces = [self.body[at : at + _PIECE] for at in range(0, len(self.body), _PIECE)]
        return raw(1, 1, publish) + raw(2, 1, header) + b"".join(raw(3, 1, piece) for piece in pieces)


class RawPublisher(Events):
    """Publishes one message after the other; what the broker refuses costs it the connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._done: asyncio.Future[bool] | None = None
        self._connected = False

    async def publish(self, message: Raw) -> bool:
        """Returns whether the broker took the message."""
        if not self._connected:
            await connect(self._url, self, [commands.Confirm.Select()], name="raw", timeout=SECONDS)
            self._connected = True
        self._done = asyncio.get_running_loop().create_future()
        self.connection.write(message.frames())
        async with asyncio.timeout(SECONDS):
            return await self._done

    async def close(self) -> None:
        if self._connected:
            await self.connection.close()

    def confirmed(self, tag: int, *, multiple: bool, positive: bool) -> None:  # noqa: ARG002
        self._answer(taken=positive)

    def lost(self, error: ConnectionLost) -> None:  # noqa: ARG002
        self._connected = False
        self._answer(taken=False)

    def _answer(self, *, taken: bool) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(taken)


def odd(random: Random, exchange: str, key: str, queue: str) -> Raw:
    """Returns a message that comes into a queue, if the broker takes it.

    Args:
        random: Chooses all of it.
        exchange: Leads to the queue, by its full name.
        key: With this routing key.
        queue: The queue's full name.
    """
    properties, copies = [], b""
    target, routing_key = exchange.encode(), key.encode()
    way = random.randrange(3)
    if way == 0:  # the broker delivers with the first key, and routes by each
        routing_key = _text(random)
        copy = b"S" + _long(key.encode()) + b"S" + _long(_text(random))
        copies = random.choice((b"\x02CC", b"\x03BCC")) + b"A" + _long(copy)
    elif way == 1:
        target, routing_key = b"", queue.encode()
    flags = 0
    for flag, write in _PROPERTIES:
        if random.random() < 0.4 or (copies and flag == _HEADERS):
            flags |= flag
            value = write(random)
            properties.append(_long(copies + value[4:]) if flag == _HEADERS else value)
    return Raw(target, routing_key, struct.pack(">H", flags) + b"".join(properties), _body(random))


def _text(random: Random) -> bytes:
    return random.choice(_TEXTS) if random.random() < 0.7 else random.randbytes(random.randrange(256))


def _short(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def _long(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def _value(random: Random, depth: int = 0) -> bytes:
    kind = random.choice((*_FIXED, b"S", b"x", b"D", b"T", b"V", b"A", b"F"))
    value = b""
    if kind in _FIXED:
        value = random.choice((b"\xff", b"\x00", b"\x7f")) * _FIXED[kind]
    elif kind == b"D":
        value = random.randbytes(5)
    elif kind == b"T":
        value = random.choice((bytes(8), b"\x7f" + b"\xff" * 7, b"\xff" * 8))
    elif kind in (b"S", b"x"):
        value = _long(_text(random))
    elif kind in (b"A", b"F"):
        count = random.randrange(4) if depth < _DEPTH else 0
        inner = depth + 1
        value = (
            _long(b"".join(_value(random, inner) for _ in range(count)))
            if kind == b"A"
            else _table(random, count, inner)
        )
    return kind + value


def _table(random: Random, count: int, depth: int = 0) -> bytes:
    names = [random.choice(_NAMES) if random.random() < 0.5 else _text(random) for _ in range(count)]
    return _long(b"".join(_short(name) + _value(random, depth) for name in names))


def _deep(random: Random) -> bytes:
    """Tables within tables, or many small values."""
    if random.random() < 0.5:
        return _long(b"\x01nV" * 10_000)
    value = b"V"
    for _ in range(300):
        value = b"F" + _long(b"\x01n" + value)
    return _long(b"\x01n" + value)


def _body(random: Random) -> bytes:
    strangers = [result(STRANGER + n, 1) for n in range(random.randrange(1, 50))]
    return random.choice(
        (
            b"",
            b"{}",
            b"\xff" * random.randrange(1, 1_000),
            random.randbytes(300_000),
            b"[" * 100_000,
            b'{"delivery_id": 1e400, "operator": "\\ud800"}',
            b'{"delivery_id": 4611686018427387904}',
            b'{"delivery_id": 4611686018427387904, "operator": "\x1b", "preparation": 1, "definitive": true}',
            json.dumps(strangers).encode(),
            json.dumps([event(STRANGER, 1, "open", "\x00\x1b")]).encode(),
        )
    )


_HEADERS = 0x2000
_PROPERTIES = (
    (0x8000, lambda r: _short(_text(r))),  # content_type
    (0x4000, lambda r: _short(_text(r))),  # content_encoding
    (_HEADERS, lambda r: _table(r, r.randrange(6)) if r.random() < 0.9 else _deep(r)),
    (0x1000, lambda r: r.choice((b"\x01", b"\x02"))),  # delivery_mode; the broker takes no other
    (0x0800, lambda r: r.randbytes(1)),  # priority
    (0x0400, lambda r: _short(_text(r))),  # correlation_id
    (0x0200, lambda r: _short(_text(r))),  # reply_to
    (0x0100, lambda r: _short(r.choice((b"3600000", b"4294967295", b"86400000")))),  # expiration
    (0x0080, lambda r: _short(_text(r))),  # message_id
    (0x0040, lambda r: r.choice((bytes(8), b"\xff" * 8, r.randbytes(8)))),  # timestamp
    (0x0020, lambda r: _short(_text(r))),  # type
    (0x0008, lambda r: _short(_text(r))),  # app_id; the broker takes no user_id but the connection's own
    (0x0004, lambda r: _short(_text(r))),  # cluster_id
)
