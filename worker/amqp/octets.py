"""Octets of AMQP, whatever a publisher wrote: read without an error, and cut to what AMQP carries.

AMQP 0-9-1 says that a short string is UTF-8; RabbitMQ hands on any octets.
"""

from __future__ import annotations

from typing import Any, Final

from pamqp import decode

SHORT: Final = 255
"""The most octets of a short string, such as an identifier, a routing key or a header's name."""

_DEEPEST: Final = 32
"""Tables within tables that are read: a frame has room for 18,000, and Python's stack for 1,000."""

_SIZES: Final = {
    **dict.fromkeys(b"tbB", 1),
    **dict.fromkeys(b"su", 2),
    **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"lLdT", 8),
    ord("D"): 5,
    **dict.fromkeys(b"V\x00", 0),
}
"""The octets of a value by its type; a type that is in neither has its length before it."""
_LONG: Final = frozenset(b"SxAF")


def short(text: str) -> str:
    """Returns a text as a short string can carry it: what is beyond 255 octets is cut off.

    Half a character, and half of a surrogate pair, is left out or replaced.
    """
    octets = text.encode(errors="replace")
    return octets[:SHORT].decode(errors="ignore")


def storable(text: str) -> str:
    """Returns a text without NUL, which neither Postgres nor the models of the wire hold."""
    return text.replace("\x00", "\ufffd")


def table(data: bytes) -> dict[str, Any]:
    """Reads a field table, such as the headers.

    Args:
        data: Its octets behind its length.

    Returns:
        The values by name. A name that is not UTF-8 has replacement characters, a value that cannot be read
        is None, and a value of an unknown type or length is left out with all behind it.
    """
    return _table(data, 0, len(data), 0)


def _table(data: bytes, at: int, end: int, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while at < end:
        begin = at + 1
        at = begin + data[at]
        name = data[begin:at].decode(errors="replace")
        after = _end(data, at, end)
        if after is None:
            break
        found[name] = _value(data, at, after, depth)
        at = after
    return found


def _array(data: bytes, at: int, end: int, depth: int) -> list[Any]:
    found: list[Any] = []
    while (after := _end(data, at, end)) is not None:
        found.append(_value(data, at, after, depth))
        at = after
    return found


def _end(data: bytes, at: int, end: int) -> int | None:
    """Returns where the value that begins with its type at `at` ends; None where that is not before `end`."""
    if at >= end:
        return None
    kind = data[at]
    if kind in _LONG:
        after = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
    elif kind in _SIZES:
        after = at + 1 + _SIZES[kind]
    else:
        return None
    return after if after <= end else None


def _value(data: bytes, at: int, after: int, depth: int) -> Any:  # noqa: ANN401 - of any type
    kind = data[at : at + 1]
    if kind in (b"F", b"A"):
        if depth == _DEEPEST:
            return None
        read = _table if kind == b"F" else _array
        return read(data, at + 5, after, depth + 1)
    try:
        return decode.TABLE_MAPPING[kind](data[at + 1 : after])[1]
    except Exception:  # noqa: BLE001 - a time after the year 9999; a decoder that is given anything may raise anything
        return None
