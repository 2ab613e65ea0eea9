"""Frames and content headers of AMQP 0-9-1: the numbers that the encoder and the reader share.

Source: AMQP 0-9-1, 2.3.5 (frames), 2.3.5.2 (content headers), and the class `basic` of its XML definition.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

CHANNEL: Final = 1
"""The number of a connection's one AMQP channel."""

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
"""The types of frames."""

FRAME_HEAD: Final = Struct(">BHI")
"""Type, channel, and bytes of the payload."""
FRAME_END: Final = 0xCE
"""The byte behind the payload."""
FRAME_OVERHEAD: Final = FRAME_HEAD.size + 1
"""Bytes of a frame beside its payload."""

BASIC: Final = 60
"""The class of what carries messages."""
DELIVER, ACK, NACK = 60, 80, 120
"""Its methods that the reader knows, or the encoder writes, without pamqp."""

CONTENT: Final = Struct(">HHQH")
"""The fixed part of a content header: class, weight (always 0), bytes of the body, flags of properties."""
HEADER_FRAME: Final = Struct(">BHIHHQH")
"""A frame's head and the fixed part of a content header, in one."""

# A flag for each property. The values of the properties that are set follow in this order.
F_CONTENT_TYPE, F_CONTENT_ENCODING, F_HEADERS, F_DELIVERY_MODE = 0x8000, 0x4000, 0x2000, 0x1000
F_PRIORITY, F_CORRELATION_ID, F_REPLY_TO, F_EXPIRATION = 0x0800, 0x0400, 0x0200, 0x0100
F_MESSAGE_ID, F_TIMESTAMP, F_TYPE, F_USER_ID = 0x0080, 0x0040, 0x0020, 0x0010
F_APP_ID, F_CLUSTER_ID = 0x0008, 0x0004


def method_key(method: int) -> bytes:
    """Returns the bytes that a method of the class `basic` begins with: class and method."""
    return Struct(">HH").pack(BASIC, method)
