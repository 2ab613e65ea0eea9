r"""Frames that aio-pika cannot read: the broker hands on what a publisher wrote, be it UTF-8 or not.

aio-pika ends its connection when it gets such a message, or never returns it. The broker delivers it again,
and after 50 times all messages that were prefetched with it are in the dead queue. With this module only the
message itself goes there.

A note for pamqp, which decodes for aio-pika: AMQP 0-9-1 says that a short string is UTF-8, and RabbitMQ
hands on any octets. With pamqp 4.0, `Basic.Properties().unmarshal(0x0080, b"\x01\xff")` raises
UnicodeDecodeError, and a timestamp after the year 9999 raises too, out of the reader of the whole
connection; so does a routing key that is not UTF-8, in Basic.Deliver, Basic.GetOk and Basic.Return. What
would help: decode short strings with errors="surrogateescape", give None for a timestamp out of range, or
hand the octets to the caller. A test fails when pamqp changes here, so that this module can go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pamqp import decode
from pamqp.commands import Basic

from worker.amqp import octets

if TYPE_CHECKING:
    from collections.abc import Callable

_SIZES: Final[dict[str, Callable[[bytes], int]]] = {
    "octet": lambda _: 1,
    "timestamp": lambda _: 8,
    "shortstr": lambda data: 1 + data[0],
    "table": lambda data: 4 + int.from_bytes(data[:4], "big"),
}
"""The length of a property, by its type, at the beginning of some bytes."""

_DELIVERY_MODES: Final = (1, 2)


def unmarshal(self: Basic.Properties, flags: int, data: bytes) -> None:
    """Reads properties as pamqp does; a bad one becomes text with replacement characters, or None.

    A `delivery_mode` and an `expiration` for which aio-pika would raise are None too.

    Args:
        self: The properties to set.
        flags: Which properties there are (AMQP 0-9-1, 4.2.6.1).
        data: Their octets, in order.
    """
    for name in self.__slots__:
        if flags & self.flags[name] and data:
            kind = self.amqp_type(name)
            size = _SIZES[kind](data)
            setattr(self, name, _read(kind, data[:size]))
            data = data[size:]
    if self.delivery_mode not in _DELIVERY_MODES:
        self.delivery_mode = None
    if self.expiration is not None and not self.expiration.isdecimal():
        self.expiration = None


def _read(kind: str, data: bytes) -> object:
    if kind == "shortstr":
        return data[1:].decode(errors="replace")
    if kind == "table":
        return octets.table(data[4:])
    try:
        return decode.by_type(data, kind)[1]
    except Exception:  # noqa: BLE001 - a decoder that is given anything may raise anything
        return None


def _short_string(data: bytes) -> tuple[int, str]:
    """Reads what `pamqp.decode.short_str` does, and never raises over what it says.

    Raises:
        ValueError: there is nothing to read.
    """
    if not data:
        raise ValueError("A short string is missing.")
    end = 1 + data[0]
    return end, data[1:end].decode(errors="replace")


PAMQPS_OWN: Final = Basic.Properties.unmarshal
PAMQPS_SHORT_STRING: Final[Any] = decode.short_str
"""What `patch_pamqp` replaces."""


def patch_pamqp() -> None:
    """Has pamqp read properties and short strings like this from now on, in the whole process."""
    Basic.Properties.unmarshal = unmarshal  # type: ignore[method-assign, assignment]
    decode.METHODS["shortstr"] = _short_string
