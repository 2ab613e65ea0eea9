"""Replies out of what the server writes (RFC 5321 section 4.2), however the network cuts it into pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_LONGEST_LINE: Final = 8192
"""Octets of a reply's line; RFC 5321 section 4.5.3.1.5 has 512, and servers write more."""
_LONGEST_REPLY: Final = 4 * _LONGEST_LINE
"""Octets of a reply in all its lines."""
_CODE_LENGTH: Final = 3


class Reply(NamedTuple):
    """A server's reply: its code, and its text, whose lines are parted by line feeds."""

    code: int
    text: str


class ReplyReader:
    """Reads the replies of one connection."""

    def __init__(self) -> None:
        """Has read nothing yet."""
        self._rest = b""

    @property
    def between_replies(self) -> bool:
        """Whether nothing of a reply has come that is not whole yet."""
        return not self._rest

    def feed(self, data: bytes) -> Iterator[Reply]:
        """Takes in what came; to be read to its end.

        Yields:
            The replies that are whole with it; bytes in them that are not UTF-8 as surrogates.

        Raises:
            ValueError: It is no reply, or longer than one may be; the message says so.
        """
        data = self._rest + data if self._rest else data
        start = 0
        while (end := _end_of_reply(data, start)) > 0:
            yield _read(data[start:end])
            start = end
        self._rest = data[start:]


def _end_of_reply(data: bytes, start: int) -> int:
    """Finds where the reply ends that begins at `start`; 0 if it is not whole yet."""
    line = start
    while (end := data.find(b"\n", line) + 1) > 0:
        if end - line > _LONGEST_LINE or end - start > _LONGEST_REPLY:
            raise ValueError("the server's reply is too long")
        if data[line + _CODE_LENGTH : line + _CODE_LENGTH + 1] != b"-":
            return end
        line = end
    if len(data) - line > _LONGEST_LINE or len(data) - start > _LONGEST_REPLY:
        raise ValueError("the server's reply is too long")
    return 0


def _read(reply: bytes) -> Reply:
    *before, last = reply.decode("utf-8", "surrogateescape").split("\n")[:-1]
    code = last[:_CODE_LENGTH]
    if len(code) != _CODE_LENGTH or not (code.isascii() and code.isdigit()):
        raise ValueError(f"the server's reply is not one: {last.strip()[:200]!r}")
    text = last[_CODE_LENGTH + 1 :].strip(" \t\r")
    if before:
        text = "\n".join([*(line[_CODE_LENGTH + 1 :].strip(" \t\r") for line in before), text])
    return Reply(int(code), text)
