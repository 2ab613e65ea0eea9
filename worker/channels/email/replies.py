"""Reads replies (RFC 5321 section 4.2) from the server's bytes, in pieces of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEPT_LINE: Final = 8192
"""Octets of a reply's line that are kept. RFC 5321 section 4.5.3.1.5 allows 512, but servers write more."""
_KEPT_LINES: Final = 64
"""Lines of a reply that are kept."""
_LONGEST_REPLY: Final = 1 << 20
"""The most octets of a reply. A longer one counts as a reply that never ends."""
_CODE_LENGTH: Final = 3


class SmtpReply(NamedTuple):
    """A server's reply: its code, and its text with line feeds between lines."""

    code: int
    text: str


class SmtpReplyReader:
    """Reads the replies of one connection. It keeps the code of a long reply and the beginning of its text.

    The reply to the final dot decides whether the server takes the message. So its code must be read, even if
    its text is very long.
    """

    def __init__(self) -> None:
        """Starts with no bytes."""
        self._lines: list[bytes] = []
        self._line = b""
        self._octets = 0

    @property
    def between_replies(self) -> bool:
        """Whether no part of an incomplete reply has arrived."""
        return not self._octets

    def feed(self, data: bytes) -> Iterator[SmtpReply]:
        """Takes bytes and yields replies. The caller must read the iterator to its end.

        Yields:
            The replies that are now complete. Bytes that are not UTF-8 become surrogates.

        Raises:
            ValueError: The bytes are not a reply, or the reply does not end; the message says which.
        """
        start = 0
        while (end := data.find(b"\n", start) + 1) > 0:
            self._add(data[start:end])
            start = end
            line, self._line = self._line, b""
            if line[_CODE_LENGTH : _CODE_LENGTH + 1] == b"-":
                if len(self._lines) < _KEPT_LINES:
                    self._lines.append(line)
                continue
            lines, self._lines, self._octets = self._lines, [], 0
            yield _read(lines, line)
        self._add(data[start:])

    def _add(self, piece: bytes) -> None:
        self._octets += len(piece)
        if self._octets > _LONGEST_REPLY:
            raise ValueError("the server's reply does not end")
        self._line += piece[: _KEPT_LINE - len(self._line)]


def _read(before: list[bytes], line: bytes) -> SmtpReply:
    last = line.decode("utf-8", "surrogateescape")
    code = last[:_CODE_LENGTH]
    if len(code) != _CODE_LENGTH or not (code.isascii() and code.isdigit()):
        raise ValueError(f"the server's reply is not one: {last.strip()[:200]!r}")
    text = last[_CODE_LENGTH + 1 :].strip(" \t\r\n")
    if before:
        earlier = (one[_CODE_LENGTH + 1 :].decode("utf-8", "surrogateescape") for one in before)
        text = "\n".join([*(one.strip(" \t\r\n") for one in earlier), text])
    return SmtpReply(int(code), text)
