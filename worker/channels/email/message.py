"""Messages as bytes: MIME (RFC 2045 to 2047) around a rendered content.

A campaign's messages differ in few places, so a message is joined from ready lines. A tree of objects would
cost several times as much. The tests read every message with the standard library's `email` package.
"""

from __future__ import annotations

import hashlib
import secrets
from email.message import MIMEPart
from email.policy import SMTP
from email.utils import format_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from worker.channels.email.body import BodyEncoder
from worker.channels.email.headers import header_line, mailbox_line
from worker.domain.mailbox import named_mailbox

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime, tzinfo

    from worker.domain.attachments import Attachment
    from worker.domain.content import EmailContent
    from worker.domain.mailbox import Mailbox
    from worker.domain.templates import Rendered

_CRLF: Final = b"\r\n"


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
        self._from_line = mailbox_line("From", self.sender)
        self._reply_line = mailbox_line("Reply-To", self._reply_to) if self._reply_to else None
        self._text = BodyEncoder("plain", (fixed or {}).get("text", ()))
        self._html = BodyEncoder("html", (fixed or {}).get("html", ()))
        self._inline = [[_attached(one)] for one in content.attachments if one.cid is not None]
        self._files = [[_attached(one)] for one in content.attachments if one.cid is None]
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

    def build(
        self,
        rendered: Rendered,
        recipient: Mailbox,
        *,
        message_id: str,
        at: datetime,
        more: Sequence[str] = (),
    ) -> bytes:
        """Builds one message.

        Args:
            rendered: The content filled in for the recipient.
            recipient: The recipient, with the display name to show, if any.
            message_id: The message's name in angle brackets.
            at: The time for the Date header, with its zone.
            more: Header lines that are ready, without their ends.

        Returns:
            The whole message in lines that end with CRLF, of at most 998 octets. It is ASCII, except for
            addresses in headers if `smtputf8` is true for the recipient.

        Raises:
            RenderFailed: A header's value cannot be put into lines of that length.
        """
        lines = [self._from_line, mailbox_line("To", recipient)]
        if self._reply_line:
            lines.append(self._reply_line)
        if rendered.subject:
            lines.append(header_line("Subject", rendered.subject))
        lines += [
            _date_line(at.replace(microsecond=0), at.tzinfo),
            f"Message-ID: {message_id}",
            "MIME-Version: 1.0",
        ]
        lines += [header_line(name, value) for name, value in rendered.headers.items()]
        lines += more
        text = None if rendered.text_pieces is None else self._text.encode(rendered.text_pieces)
        html = None if rendered.html_pieces is None else self._html.encode(rendered.html_pieces)
        # Drawn after the bodies were made, so that no value in them can contain it on purpose.
        drawn = secrets.token_hex(12)
        # Every level is a list, so that large attachments are copied once.
        shown = None if html is None else _multipart("related", drawn, [[html], *self._inline])
        both = _multipart("alternative", drawn, [part for part in (text and [text], shown) if part])
        return b"".join(
            ["\r\n".join(lines).encode(), _CRLF, *_multipart("mixed", drawn, [both, *self._files])]
        )


def _multipart(subtype: str, drawn: str, parts: list[list[bytes]]) -> list[bytes]:
    """Joins parts (RFC 2046 section 5.1); one part alone stays as it is.

    Args:
        subtype: The kind of multipart.
        drawn: Characters for the boundary that none of the parts holds.
        parts: The parts, each with its own headers, in pieces.

    Returns:
        The part that holds them, in pieces.
    """
    if len(parts) == 1:
        return parts[0]
    boundary = f"=_{subtype[0]}{drawn}"
    mark = f"\r\n--{boundary}".encode()
    root = ' type="text/html";' if subtype == "related" else ""  # RFC 2387 section 3.1
    joined = [f'Content-Type: multipart/{subtype};{root} boundary="{boundary}"\r\n'.encode()]
    for part in parts:
        joined += [mark, _CRLF, *part]
    return [*joined, mark, b"--\r\n"]


def _attached(one: Attachment) -> bytes:
    """Encodes a file. Names beyond ASCII are written as RFC 2231 says."""
    maintype, _, subtype = (one.type or "").partition("/")
    octets = one.octets
    part = MIMEPart(policy=SMTP)
    disposition = "attachment" if one.cid is None else "inline"
    cid = None if one.cid is None else f"<{one.cid}>"
    part.set_content(octets, maintype, subtype, disposition=disposition, filename=one.name, cid=cid)
    if maintype == "text":
        part.set_param("charset", "us-ascii" if octets.isascii() else "utf-8")
    return part.as_bytes()


@lru_cache(maxsize=2)
def _date_line(second: datetime, _zone: tzinfo | None) -> str:
    """The Date header.

    The zone is part of the cache key, since equal times of two zones have different texts.
    """
    return f"Date: {format_datetime(second)}"
