"""A message with its envelope: the commands that come before the body, and the body's octets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from aiosmtplib.protocol import normalize_message_line_endings

from worker.channels.email.dsn import DsnOptions

if TYPE_CHECKING:
    from collections.abc import Callable

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
"""Characters that a command must not contain (RFC 5321 section 4.1.2), first of all a line end."""
_NO_REPORTS: Final = DsnOptions(b"", b"")


class Offers(NamedTuple):
    """The extensions that a server offers, of those that we use."""

    pipelining: bool
    size: bool
    smtputf8: bool
    dsn: bool

    @classmethod
    def of(cls, offered: Callable[[str], bool]) -> Offers:
        """Asks for each."""
        return cls(*map(offered, cls._fields))


class Enveloped(NamedTuple):
    """A message and its envelope."""

    sender: bytes
    """The envelope sender, in angle brackets."""
    recipient: bytes
    """The envelope recipient, likewise."""
    body: bytes
    """Headers and body, in whole lines that end with CRLF."""
    smtputf8: bool
    """Whether an address or header in it is not ASCII (RFC 6531)."""
    dsn: DsnOptions | None
    """Which reports to ask for, if the server offers that (RFC 3461)."""

    def fits(self, offers: Offers) -> bool:
        """Returns whether a server can take it."""
        return offers.smtputf8 or not self.smtputf8

    def commands(self, offers: Offers) -> tuple[bytes, bytes, bytes]:
        """Returns MAIL, RCPT and DATA (RFC 5321 section 3.3)."""
        size = b" SIZE=%d" % len(self.body) if offers.size else b""  # RFC 1870: refused before it is sent
        # RFC 6531 section 3.6 wants both.
        options = size + b" BODY=8BITMIME SMTPUTF8" if self.smtputf8 else size
        reports = self.dsn if self.dsn and offers.dsn else _NO_REPORTS
        return (
            b"MAIL FROM:" + self.sender + options + reports.mail + b"\r\n",
            b"RCPT TO:" + self.recipient + reports.rcpt + b"\r\n",
            b"DATA\r\n",
        )


def enveloped(
    sender: str, recipient: str, message: bytes, *, smtputf8: bool, dsn: DsnOptions | None
) -> Enveloped:
    """Puts a message into its envelope.

    Raises:
        ValueError: An address holds a character that would end its command.
    """
    return Enveloped(_path(sender), _path(recipient), _whole_lines(message), smtputf8, dsn)


def _path(address: str) -> bytes:
    if _CONTROL.search(address):
        raise ValueError(f"An address must not hold a control character: {address!r}")
    return b"<" + address.encode() + b">"


def _whole_lines(message: bytes) -> bytes:
    """Ends every line with CRLF: a bare line end could be read as the end of the message."""
    ends = message.count(b"\r\n")
    if ends == message.count(b"\n") == message.count(b"\r") and message.endswith(b"\r\n"):
        return message
    return normalize_message_line_endings(message)
