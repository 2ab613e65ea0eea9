r"""Reads properties that aio-pika cannot read: a publisher may write bytes that are not UTF-8.

aio-pika ends its connection when it gets such a message, or never returns it. The broker delivers it again,
and after 50 times all messages that were prefetched with it are in the dead queue. With this module only the
message itself goes there.

A note for pamqp, which decodes for aio-pika: AMQP 0-9-1 says that a short string is UTF-8, and RabbitMQ
passes on any octets. With pamqp 4.0, `Basic.Properties().unmarshal(0x0080, b"\x01\xff")` raises
UnicodeDecodeError, and a timestamp after the year 9999 raises too, in the reader of the whole connection.
pamqp could decode short strings with errors="surrogateescape", return None for a timestamp out of range, or
return the octets. A test fails when pamqp changes this. Then this module can go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pamqp import decode
from pamqp.commands import Basic

if TYPE_CHECKING:
    from collections.abc import Callable

_SIZES: Final[dict[str, Callable[[bytes], int]]] = {
    "octet": lambda _: 1,
    "timestamp": lambda _: 8,
    "shortstr": lambda data: 1 + data[0],
    "table": lambda data: 4 + int.from_bytes(data[:4], "big"),
}
"""The length of a property, by its type, at the beginning of some bytes."""


def unmarshal(self: Basic.Properties, flags: int, data: bytes) -> None:
    """Reads properties as pamqp does; a bad one becomes text with replacement characters, or None.

    Args:
        self: The properties to set.
        flags: Which properties there are (AMQP 0-9-1, 4.2.6.1).
        data: Their octets, in order.
    """
    for name in self.__slots__:
        if flags & self.flags[name]:
            kind = self.amqp_type(name)
            size = _SIZES[kind](data)
            setattr(self, name, _read(kind, data[:size]))
            data = data[size:]


def _read(kind: str, data: bytes) -> object:
    try:
        return decode.by_type(data, kind)[1]
    except Exception:  # noqa: BLE001 - a decoder of unknown bytes may raise anything
        return data[1:].decode(errors="replace") if kind == "shortstr" else None


PAMQPS_OWN: Final = Basic.Properties.unmarshal
"""pamqp's own method, which `patch_pamqp` replaces."""


def patch_pamqp() -> None:
    """Makes pamqp use `unmarshal` from now on, in the whole process."""
    Basic.Properties.unmarshal = unmarshal  # type: ignore[method-assign, assignment]
