"""Messages as bytes: MIME (RFC 2045 to 2047) around a rendered content.

A campaign's messages differ in a few places only, so a message is put together from ready lines instead of a
tree of objects, which costs several times as much. The encodings are the standard library's, but for the one
encoded word that is all most headers need; the tests compare that, and read every message back with the
library's `email` package.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import secrets
from email.header import Header
from email.quoprimime import header_encode
from email.utils import format_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from worker.channels.email.body import BodyEncoder
from worker.domain.mailbox import named_mailbox
from worker.domain.templates import RenderFailed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime, tzinfo

    from worker.domain.content import EmailContent
    from worker.domain.mailbox import Mailbox
    from worker.domain.templates import Rendered

_CRLF: Final = b"\r\n"
_LONGEST_LINE: Final = 998
"""Octets of a line without its end (RFC 5322 section 2.1.1)."""
_FOLD_AT: Final = 78
"""Characters that a header line should not pass (the same section)."""
_PHRASE_SPECIALS: Final = re.compile(r'[()<>@,:;".\[\]\\]|  ')
"""What makes a display name need quotes (RFC 5322 section 3.2.3); spaces would run together without."""
_Q_OCTETS: Final = [
    header_encode(bytes([octet])).removeprefix("=?iso-8859-1?q?")[:-2] for octet in range(256)
]
"""Each octet as the encoding Q of RFC 2047 section 4.2 writes it."""


class MessageBuilder:
    """Builds the messages of one content."""

    def __init__(self, content: EmailContent, fixed: Mapping[str, Collection[str]] | None = None) -> None:
        """Prepares what all messages of the content share.

        Args:
            content: The content as it was prepared.
            fixed: The texts that its rendered bodies have in common, by part; see `Renderer.fixed`. Messages
                are the same without, and take longer to build.
        """
        self.sender: Final = named_mailbox(content.sender)
        """The author's mailbox and the envelope sender."""
        self._reply_to = named_mailbox(content.reply_to) if content.reply_to else None
        self._from_line = _mailbox_line("From", self.sender)
        self._reply_line = _mailbox_line("Reply-To", self._reply_to) if self._reply_to else None
        self._text = BodyEncoder("plain", (fixed or {}).get("text", ()))
        self._html = BodyEncoder("html", (fixed or {}).get("html", ()))
        # Numbers of deliveries begin anew with every database, and mail systems drop a message whose id they
        # have seen; the digest keeps a rehearsal's ids apart from the real delivery's.
        digest = hashlib.sha256(content.model_dump_json().encode()).hexdigest()[:12]
        self._id_tail = f".{digest}@{self.sender.domain}"

    def smtputf8(self, recipient: Mailbox) -> bool:
        """Says whether a message to the recipient needs SMTPUTF8 (RFC 6531) all the way."""
        return self.sender.smtputf8 or recipient.smtputf8 or bool(self._reply_to and self._reply_to.smtputf8)

    def message_id(self, attempt: str) -> str:
        """Names the message of an attempt, equal each time it is asked (RFC 5322 section 3.6.4).

        Args:
            attempt: The send message's `message_id`: `<delivery>-<recipient>-<attempt>`.
        """
        return f"<{attempt}{self._id_tail}>"

    def build(self, rendered: Rendered, recipient: Mailbox, *, message_id: str, at: datetime) -> bytes:
        """Builds one message.

        Args:
            rendered: The content filled in for the recipient.
            recipient: The recipient, with the display name to show, if any.
            message_id: The message's name in angle brackets.
            at: The time for the Date header, with its zone.

        Returns:
            The whole message in lines that end with CRLF, of at most 998 octets. It is ASCII, but for
            addresses in headers when `smtputf8` is true for the recipient.

        Raises:
            RenderFailed: A header's value cannot be put into lines of that length.
        """
        lines = [self._from_line, _mailbox_line("To", recipient)]
        if self._reply_line:
            lines.append(self._reply_line)
        lines += [
            _header_line("Subject", rendered.subject),
            _date_line(at.replace(microsecond=0), at.tzinfo),
            f"Message-ID: {message_id}",
            "MIME-Version: 1.0",
        ]
        lines += [_header_line(name, value) for name, value in rendered.headers.items()]
        parts = [
            encoder.encode(pieces)
            for encoder, pieces in ((self._text, rendered.text_pieces), (self._html, rendered.html_pieces))
            if pieces is not None
        ]
        head = "\r\n".join(lines).encode()
        if len(parts) == 1:
            return head + _CRLF + parts[0]
        # Drawn after the bodies were made, so that no value in them can have foreseen it.
        boundary = f"=_{secrets.token_hex(12)}"
        mark = f"\r\n--{boundary}".encode()
        kind = f'\r\nContent-Type: multipart/alternative; boundary="{boundary}"\r\n'.encode()
        return head + kind + b"".join(mark + _CRLF + part for part in parts) + mark + b"--\r\n"


@lru_cache(maxsize=2)
def _date_line(second: datetime, _zone: tzinfo | None) -> str:
    """The Date header; the zone is a part of the key, as equal times of different zones read differently."""
    return f"Date: {format_datetime(second)}"


def _header_line(name: str, value: str) -> str:
    """A header of free text, folded, in encoded words (RFC 2047) where it is not plain ASCII.

    Raises:
        ValueError: The value holds a line break.
        RenderFailed: A word of it is longer than a line may be.
    """
    _refuse_line_breaks(name, value)
    line = f"{name}: {value}"
    plain = value.isascii() and "=?" not in value  # what looks like an encoded word would be read as one
    if plain and len(line) <= _FOLD_AT:
        return line
    folded = _folded(line) if plain else _encoded_words(name, value)
    if max(map(len, folded.split("\r\n"))) > _LONGEST_LINE:
        raise RenderFailed(
            f"{name}: it holds a word of more than {_LONGEST_LINE} characters, which no line can carry."
        )
    return folded


def _mailbox_line(name: str, mailbox: Mailbox) -> str:
    """A header of one mailbox; its display name is quoted or in encoded words where it needs to be."""
    if not mailbox.name:
        return f"{name}: {mailbox.address}"
    shown = mailbox.name
    _refuse_line_breaks(name, shown + mailbox.address)
    if not shown.isascii() or "=?" in shown or len(name) + len(shown) > _FOLD_AT - len(': "" ') * 2:
        line = _encoded_words(name, shown)
    elif _PHRASE_SPECIALS.search(shown):
        escaped = shown.replace("\\", "\\\\").replace('"', '\\"')
        line = f'{name}: "{escaped}"'
    else:
        line = f"{name}: {shown}"
    last = line.rpartition("\r\n")[2]
    space = " " if len(last) + len(mailbox.address) + len(" <>") <= _FOLD_AT else "\r\n "
    return f"{line}{space}<{mailbox.address}>"


def _refuse_line_breaks(name: str, value: str) -> None:
    """Holds the last line against header injection; rendering refuses line breaks long before."""
    if "\r" in value or "\n" in value:
        raise ValueError(f"The header {name} must not hold a line break.")


def _folded(line: str) -> str:
    """Breaks a line before words that one space parts (RFC 5322 section 2.2.3), never after the name."""
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
    """What `_folded_encoded_words` gives for a value that one word can carry, in a tenth of the time."""
    octets = value.encode()
    room = _FOLD_AT - len(f"{name}: =?utf-8?q??=")
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
    header = Header(value, "utf-8", maxlinelen=_FOLD_AT, header_name=name)
    return f"{name}: " + header.encode(linesep="\r\n")
