"""Messages as bytes: MIME (RFC 2045 to 2047) around a rendered content.

A campaign's messages differ in few places, so a message is joined from ready lines. A tree of objects would
cost several times as much. The encodings are the standard library's, except for headers that need only one
encoded word. The tests compare that one with the library's, and read every message with the library's `email`
package.
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
"""Characters for which a display name needs quotes (RFC 5322 section 3.2.3). Without quotes, spaces would be
joined."""
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
            fixed: The texts that its rendered bodies share, by part; see `Renderer.fixed`. Without them the
                messages are the same but take longer to build.
        """
        self.sender: Final = named_mailbox(content.sender)
        """The author's mailbox and the envelope sender."""
        self._reply_to = named_mailbox(content.reply_to) if content.reply_to else None
        self._from_line = _mailbox_line("From", self.sender)
        self._reply_line = _mailbox_line("Reply-To", self._reply_to) if self._reply_to else None
        self._text = BodyEncoder("plain", (fixed or {}).get("text", ()))
        self._html = BodyEncoder("html", (fixed or {}).get("html", ()))
        # Every new database numbers deliveries from 1, and mail systems drop a message whose id they have
        # seen. With the digest, the ids of a rehearsal and of the real delivery differ.
        digest = hashlib.sha256(content.model_dump_json().encode()).hexdigest()[:12]
        self._digest = digest

    def smtputf8(self, recipient: Mailbox) -> bool:
        """Returns whether a message to the recipient needs SMTPUTF8 (RFC 6531) on every server."""
        return self.sender.smtputf8 or recipient.smtputf8 or bool(self._reply_to and self._reply_to.smtputf8)

    def message_id(self, attempt: str, tag: str | None = None) -> str:
        """Names the message of an attempt (RFC 5322 section 3.6.4). An attempt always has the same name.

        Args:
            attempt: The send message's `message_id`: `<delivery>-<recipient>-<attempt>`.
            tag: The signature of the attempt, by which returned mail is recognised; None for no signature.
        """
        signed = f".{tag}" if tag else ""
        return f"<{attempt}.{self._digest}{signed}@{self.sender.domain}>"

    def build(self, rendered: Rendered, recipient: Mailbox, *, message_id: str, at: datetime) -> bytes:
        """Builds one message.

        Args:
            rendered: The content filled in for the recipient.
            recipient: The recipient, with the display name to show, if any.
            message_id: The message's name in angle brackets.
            at: The time for the Date header, with its zone.

        Returns:
            The whole message in lines that end with CRLF, of at most 998 octets. It is ASCII, except for
            addresses in headers if `smtputf8` is true for the recipient.

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
        # Drawn after the bodies were made, so that no value in them can contain it on purpose.
        boundary = f"=_{secrets.token_hex(12)}"
        mark = f"\r\n--{boundary}".encode()
        kind = f'\r\nContent-Type: multipart/alternative; boundary="{boundary}"\r\n'.encode()
        return head + kind + b"".join(mark + _CRLF + part for part in parts) + mark + b"--\r\n"


@lru_cache(maxsize=2)
def _date_line(second: datetime, _zone: tzinfo | None) -> str:
    """The Date header.

    The zone is part of the cache key, since equal times of two zones have different texts.
    """
    return f"Date: {format_datetime(second)}"


def _header_line(name: str, value: str) -> str:
    """A header of free text, folded, in encoded words (RFC 2047) where it is not plain ASCII.

    Raises:
        ValueError: The value holds a line break.
        RenderFailed: One of its words is longer than a line may be.
    """
    _refuse_line_breaks(name, value)
    line = f"{name}: {value}"
    plain = value.isascii() and "=?" not in value  # text that looks like an encoded word would be decoded
    if plain and len(line) <= _FOLD_AT:
        return line
    folded = _folded(line) if plain else _encoded_words(name, value)
    if max(map(len, folded.split("\r\n"))) > _LONGEST_LINE:
        raise RenderFailed(
            f"{name}: it holds a word of more than {_LONGEST_LINE} characters, which no line can carry."
        )
    return folded


def _mailbox_line(name: str, mailbox: Mailbox) -> str:
    """A header of one mailbox. Its display name is quoted or in encoded words if necessary."""
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
