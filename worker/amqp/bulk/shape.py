"""Reads messages that are like the one before, as nearly all are, without looking at each frame.

A message takes 2.4 µs frame by frame, and 1.2 µs here. The reader reads those that differ.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from worker.amqp.bulk.layout import BASIC, BODY, CHANNEL, CONTENT, FRAME_END, FRAME_HEAD, HEADER, HEADER_FRAME
from worker.amqp.messages import Incoming

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADER = HEADER_FRAME.unpack_from
_FRAME = FRAME_HEAD.unpack_from
_TAG_SIZE: Final = 9
"""A delivery tag, and the byte that says “redelivered”."""
_TIME_SIZE: Final = 8

_NO_FLAGS: Final = -1


class Shape:
    """The bytes that messages share: all but delivery tag, message_id, timestamp and body."""

    def __init__(self, source: Any) -> None:  # noqa: ANN401 - Incoming.channel names aiormq's
        """Takes the value of `Incoming.channel`."""
        self._source = source
        self._before_tag = self._after_tag = self._before_id = self._after_time = b""
        self._route = ("", "")
        self._flags = _NO_FLAGS
        self._headers: Mapping[str, Any] = MappingProxyType({})
        self._priority = 0

    def learn_frame(self, before_tag: bytes, after_tag: bytes, route: tuple[str, str]) -> None:
        """Takes the bytes of a `basic.deliver` before its tag and after “redelivered”, and its route."""
        self._before_tag, self._after_tag, self._route = before_tag, after_tag, route
        self._flags = _NO_FLAGS

    def learn_properties(
        self, flags: int, before_id: bytes, after_time: bytes, headers: Mapping[str, Any], priority: int
    ) -> None:
        """Takes a message's properties. Only message_id and timestamp may differ in the next messages.

        Args:
            flags: Which properties there are.
            before_id: The bytes of those before message_id.
            after_time: The bytes of those after the timestamp.
            headers: The decoded headers.
            priority: The priority, 0 where there is none.
        """
        self._flags, self._before_id, self._headers = flags, before_id, headers
        self._priority = priority
        self._after_time = after_time + bytes((FRAME_END,))

    def read(self, data: bytes, at: int, end: int, frame_max: int, batch: list[Incoming]) -> int:
        """Reads whole messages of this shape.

        Args:
            data: What arrived.
            at: Where a frame begins in it.
            end: Where it ends.
            frame_max: The largest frame that is accepted.
            batch: What is read is added here.

        Returns:
            Where the first other bytes begin.
        """
        if self._flags == _NO_FLAGS:
            return at
        add, source, headers, priority = batch.append, self._source, self._headers, self._priority
        before_tag, after_tag, flags = self._before_tag, self._after_tag, self._flags
        before_id, after_time, (exchange, key) = self._before_id, self._after_time, self._route
        to_tag = len(before_tag)
        to_route = to_tag + _TAG_SIZE
        to_header = to_route + len(after_tag)
        to_properties = to_header + HEADER_FRAME.size
        to_id = to_properties + len(before_id)
        rest = _TIME_SIZE + len(after_time)
        fixed = CONTENT.size + len(before_id) + rest
        longest = frame_max - FRAME_HEAD.size - 1
        while end - at > to_id and data.startswith(before_tag, at):
            kind, channel, size, class_id, weight, length, given = _HEADER(data, at + to_header)
            id_at = at + to_id + 1
            id_end = id_at + data[id_at - 1]
            body = id_end + rest + FRAME_HEAD.size
            after = body + length + 1
            if (
                after > end
                or (kind, channel, class_id, weight, given) != (HEADER, CHANNEL, BASIC, 0, flags)
                or size != fixed + id_end - id_at
                or _FRAME(data, body - FRAME_HEAD.size) != (BODY, CHANNEL, length)
                or not 0 < length <= longest
                or data[after - 1] != FRAME_END
                or not data.startswith(after_tag, at + to_route)
                or not data.startswith(before_id, at + to_properties)
                or not data.startswith(after_time, id_end + _TIME_SIZE)
            ):
                break
            tag = int.from_bytes(data[at + to_tag : at + to_tag + 8], "big")
            name = data[id_at:id_end].decode(errors="replace")
            told = data[body : after - 1]
            add(Incoming(told, exchange, key, name, None, None, None, headers, tag, source, priority))
            at = after
        return at
