"""Encodes bodies for mail (RFC 2045): 7bit, quoted-printable or base64.

The author's text in a template is the same for every recipient, so its whole lines are encoded once. For each
recipient only the lines that hold a value are encoded. The octets are the same as those of the whole text
encoded at once, since quoted-printable works line by line (RFC 2045 section 6.7). Base64 does not, so it
encodes the whole text.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_CRLF: Final = b"\r\n"
_LONGEST_LINE: Final = 998
"""Octets of a line without its end (RFC 5322 section 2.1.1)."""
_NOT_7BIT: Final = re.compile(rb"[^\t\n -~]")
"""Characters that need an encoding: all but printable ASCII, tabs and line ends."""
_BASE64_ABOVE: Final = 1 / 6
"""Share of octets beyond ASCII from which base64 (4/3) is shorter than quoted-printable (3 each)."""
_7BIT: Final = ("us-ascii", "7bit")
_QUOTED: Final = ("utf-8", "quoted-printable")
_BASE64: Final = ("utf-8", "base64")


@dataclass(frozen=True, slots=True)
class _Lines:
    """Whole lines: the facts that choose the body's encoding, and the lines in quoted-printable."""

    raw: bytes
    plain: bool
    """Whether they could be sent as 7bit."""
    beyond_ascii: int
    """Octets of the characters that are not ASCII."""
    quoted: bytes

    @classmethod
    def of(cls, text: str) -> _Lines:
        raw = text.encode()
        return cls(raw, _plain(raw), _beyond_ascii(text, raw), _quoted(raw))


@dataclass(frozen=True, slots=True)
class _Fixed:
    """A text of the author, cut at its first and last line end."""

    head: str
    """The end of a line that began before this text."""
    lines: _Lines
    tail: str
    """The beginning of a line that ends after this text."""


class BodyEncoder:
    """Encodes one part of a content's messages."""

    def __init__(self, subtype: str, fixed: Iterable[str] = ()) -> None:
        r"""Encodes the text that all of them share.

        Args:
            subtype: `plain` or `html`.
            fixed: Texts that most bodies contain as pieces of their own, with `
            ` for line ends.
        """
        self._subtype = subtype
        self._fixed = {text: _cut(text) for text in fixed if text.count("\n") > 1 and "\r" not in text}

    def encode(self, pieces: Sequence[str]) -> bytes:
        """Encodes a body.

        Args:
            pieces: The text, in pieces.

        Returns:
            The part's own headers, an empty line and the body, each line ended by CRLF. The octets depend
            only on the text, not on the pieces or on which of them are fixed.
        """
        # The text between the lines of fixed texts. It is joined, since two pieces may share a line end.
        own: list[str] = []
        known: list[_Lines] = []
        line: list[str] = []
        for piece in pieces:
            fixed = self._fixed.get(piece)
            if fixed is not None:
                own.append("".join([*line, fixed.head]))
                known.append(fixed.lines)
                line = [fixed.tail]
            elif "\r" in piece:
                return self.encode_whole("".join(pieces))
            else:
                line.append(piece)
        if not known:
            return self.encode_whole("".join(pieces))
        last = "".join(line)
        own.append(last if last.endswith("\n") or not last else last + "\n")
        return self._put_together(own, known)

    def _put_together(self, own: list[str], known: list[_Lines]) -> bytes:
        """Encodes lines of two kinds in turn, the first and the last being of the unknown kind."""
        text = "".join(own)
        raw = text.encode()
        plain = all(lines.plain for lines in known) and _plain(raw)
        beyond_ascii = _beyond_ascii(text, raw) + sum(lines.beyond_ascii for lines in known)
        size = len(raw) + sum(len(lines.raw) for lines in known)
        if not plain and beyond_ascii <= size * _BASE64_ABOVE:
            quoted = [_quoted(text.encode()) for text in own]
            return self._part(_QUOTED, _alternating(quoted, [lines.quoted for lines in known]))
        whole = _alternating([text.encode() for text in own], [lines.raw for lines in known])
        return self._part(_7BIT, whole) if plain else self._part(_BASE64, _base64(whole))

    def encode_whole(self, text: str) -> bytes:
        """Encodes a whole body at once, for any text. Tests compare `encode` with it."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if not text.endswith("\n"):
            text += "\n"
        raw = text.encode()
        if _plain(raw):
            return self._part(_7BIT, raw)
        if _beyond_ascii(text, raw) > len(raw) * _BASE64_ABOVE:
            return self._part(_BASE64, _base64(raw))
        return self._part(_QUOTED, _quoted(raw))

    def _part(self, charset_and_encoding: tuple[str, str], lines: bytes) -> bytes:
        charset, encoding = charset_and_encoding
        head = (
            f'Content-Type: text/{self._subtype}; charset="{charset}"\r\n'
            f"Content-Transfer-Encoding: {encoding}\r\n\r\n"
        )
        return head.encode() + lines.replace(b"\n", _CRLF)


def _cut(text: str) -> _Fixed:
    first, last = text.index("\n") + 1, text.rindex("\n") + 1
    return _Fixed(text[:first], _Lines.of(text[first:last]), text[last:])


def _plain(raw: bytes) -> bool:
    return not _NOT_7BIT.search(raw) and max(map(len, raw.split(b"\n"))) <= _LONGEST_LINE


def _beyond_ascii(text: str, raw: bytes) -> int:
    return 0 if text.isascii() else len(raw) - len(text.encode("ascii", "ignore"))


def _quoted(raw: bytes) -> bytes:
    return binascii.b2a_qp(raw, istext=True)


def _base64(raw: bytes) -> bytes:
    """Encodes lines, with CRLF: the canonical form of text inside base64 (RFC 2045)."""
    encoded = binascii.b2a_base64(raw.replace(b"\n", _CRLF), newline=False)
    # The result is that of `base64.encodebytes`, which calls `binascii` for every line and takes eight times
    # as long.
    return b"".join([encoded[i : i + 76] + b"\n" for i in range(0, len(encoded), 76)])


def _alternating(first: list[bytes], second: list[bytes]) -> bytes:
    joined = [item for pair in zip(first, second, strict=False) for item in pair]
    return b"".join([*joined, first[-1]])
