r"""Properties that aio-pika cannot read: the broker hands on what a publisher wrote, be it UTF-8 or not.

aio-pika ends its connection over such a message, or never hands it over. The broker delivers it again, and
after 50 rounds all that was prefetched beside it is in the dead queue. Here it costs only itself.

A note for pamqp, which decodes for aio-pika: AMQP 0-9-1 says that a short string is UTF-8, and RabbitMQ
hands on any octets. With pamqp 4.0, `Basic.Properties().unmarshal(0x0080, b"\x01\xff")` raises
UnicodeDecodeError, and a timestamp after the year 9999 raises too, out of the reader of the whole
connection. What would help: decode short strings with errors="surrogateescape", give None for a timestamp
out of range, or hand the octets to the caller. A test fails when pamqp changes here, so that this module
can go.
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
"""How long a property of a type is, at the beginning of some bytes."""


def unmarshal(self: Basic.Properties, flags: int, data: bytes) -> None:
    """Reads properties as pamqp does; one that cannot be read is text with replacement characters, or None.

    Args:
        self: What to read into.
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
    except Exception:  # noqa: BLE001 - a decoder that is given anything may raise anything
        return data[1:].decode(errors="replace") if kind == "shortstr" else None


PAMQPS_OWN: Final = Basic.Properties.unmarshal
"""What `patch_pamqp` replaces."""


def patch_pamqp() -> None:
    """Has pamqp read properties like this from now on, in the whole process."""
    Basic.Properties.unmarshal = unmarshal  # type: ignore[method-assign, assignment]
