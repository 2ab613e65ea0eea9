"""Header lines: kinds, folding (RFC 5322 section 2.2.3) and encoded words (RFC 2047).

The encoded words are the standard library's, except where one is enough. The tests compare that one with the
library's.
"""

from __future__ import annotations

import binascii
import re
from email.header import Header
from email.quoprimime import header_encode
from typing import TYPE_CHECKING, Final

from worker.domain.headers import Kind, kind_of
from worker.domain.templates import RenderFailed

if TYPE_CHECKING:
    from worker.domain.mailbox import Mailbox

_LONGEST_LINE: Final = 998
"""Octets of a line without its end (RFC 5322 section 2.1.1)."""
_FOLD_AT: Final = 78
"""Characters that a header line should not pass (the same section)."""
_ENCODED_FOLD_AT: Final = 76
"""Characters that a line with an encoded word must not pass (RFC 2047 section 2). So no word passes 75."""
_PHRASE_SPECIALS: Final = re.compile(r'[()<>@,:;".\[\]\\]|  ')
"""Characters for which a display name needs quotes (RFC 5322 section 3.2.3). Without quotes, spaces would be
joined."""
_Q_OCTETS: Final = [
    header_encode(bytes([octet])).removeprefix("=?iso-8859-1?q?")[:-2] for octet in range(256)
]
"""Each octet as the encoding Q of RFC 2047 section 4.2 writes it."""


def header_line(name: str, value: str) -> str:
    """Returns a header as the kind of its field asks, folded.

    Args:
        name: The field.
        value: Its value, as `worker.domain.headers.shaped` returns it.

    Raises:
        ValueError: The value holds a line break.
        RenderFailed: One of its words is longer than a line may be.
    """
    _refuse_line_breaks(name, value)
    kind = kind_of(name)
    if kind is Kind.LIST_ID:
        phrase, _, identifier = value.rpartition("<")
        folded = _phrase_line(name, phrase.rstrip(" "), f"<{identifier}")
    else:
        # Of free text, what looks like an encoded word is encoded, since it would be decoded.
        plain = kind is not Kind.TEXT or (value.isascii() and "=?" not in value)
        line = f"{name}: {value}"
        if plain and len(line) <= _FOLD_AT:
            return line
        folded = _folded(line) if plain else _encoded_words(name, value)
    if max(map(len, folded.split("\r\n"))) > _LONGEST_LINE:
        raise RenderFailed(
            f"{name}: it holds a word of more than {_LONGEST_LINE} characters, which no line can carry."
        )
    return folded


def mailbox_line(name: str, mailbox: Mailbox) -> str:
    """Returns a header of one mailbox. Its display name is quoted or in encoded words if necessary.

    Raises:
        ValueError: Name or address hold a line break.
    """
    if not mailbox.name:
        return f"{name}: {mailbox.address}"
    _refuse_line_breaks(name, mailbox.name + mailbox.address)
    return _phrase_line(name, mailbox.name, f"<{mailbox.address}>")


def _phrase_line(name: str, phrase: str, bracketed: str) -> str:
    """Returns a header of words for people and an item in angle brackets."""
    most = _FOLD_AT
    if not phrase:
        return f"{name}: {bracketed}"
    if not phrase.isascii() or "=?" in phrase or len(name) + len(phrase) > _FOLD_AT - len(': "" ') * 2:
        line, most = _encoded_words(name, phrase), _ENCODED_FOLD_AT
    elif _PHRASE_SPECIALS.search(phrase):
        escaped = phrase.replace("\\", "\\\\").replace('"', '\\"')
        line = f'{name}: "{escaped}"'
    else:
        line = f"{name}: {phrase}"
    last = line.rpartition("\r\n")[2]
    space = " " if len(last) + len(bracketed) < most else "\r\n "
    return f"{line}{space}{bracketed}"


def _refuse_line_breaks(name: str, value: str) -> None:
    """Refuses line breaks, a second protection against header injection: rendering refuses them earlier."""
    if "\r" in value or "\n" in value:
        raise ValueError(f"The header {name} must not hold a line break.")


def _folded(line: str) -> str:
    """Breaks a line at single spaces between words (RFC 5322 section 2.2.3), never after the name."""
    name, first, *words = line.split(" ")
    lines = [f"{name} {first}"]
    for word in words:
        if word and not lines[-1].endswith(" ") and len(lines[-1]) + len(word) >= _FOLD_AT:
            lines.append(f" {word}")
        else:
            lines[-1] += f" {word}"
    return "\r\n".join(lines)


def _encoded_words(name: str, value: str) -> str:
    return _one_encoded_word(name, value) or _folded_encoded_words(name, value)


def _one_encoded_word(name: str, value: str) -> str | None:
    """Returns what `_folded_encoded_words` returns if one word is enough, in a tenth of the time."""
    octets = value.encode()
    room = _ENCODED_FOLD_AT - len(f"{name}: =?utf-8?q??=")
    if not value.isprintable() or len(octets) > room:
        return None
    word = "".join([_Q_OCTETS[octet] for octet in octets])
    base64_length = -(-len(octets) // 3) * 4
    if base64_length < len(word):
        if base64_length > room:
            return None
        return f"{name}: =?utf-8?b?{binascii.b2a_base64(octets, newline=False).decode()}?="
    return f"{name}: =?utf-8?q?{word}?=" if len(word) <= room else None


def _folded_encoded_words(name: str, value: str) -> str:
    header = Header(value, "utf-8", maxlinelen=_ENCODED_FOLD_AT, header_name=name)
    return f"{name}: " + header.encode(linesep="\r\n")
