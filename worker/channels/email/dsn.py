"""Delivery status notifications (RFC 3461): what a server is asked to report, and about which recipient."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

Notify = Literal["success", "failure", "delay", "never"]
Return = Literal["headers", "full"]

_RETURNS: Final[dict[Return, bytes]] = {"headers": b"HDRS", "full": b"FULL"}
_NOT_XTEXT: Final = re.compile(rb"[^!-*,-<>-~]")
"""What xtext writes as + and two digits (section 4)."""


class DsnOptions(NamedTuple):
    """The options of one envelope, for a server that offers DSN."""

    mail: bytes
    """Behind MAIL FROM."""
    rcpt: bytes
    """Behind RCPT TO."""


class Dsn:
    """What an installation asks for."""

    def __init__(self, notify: Sequence[Notify], returned: Return) -> None:
        """Takes when to notify the envelope sender, and how much of the message comes back."""
        self._notify = b",".join(each.upper().encode() for each in notify)
        self._return = _RETURNS[returned]

    def options(self, envelope_id: str, address: str) -> DsnOptions:
        """Returns the options for one recipient.

        Args:
            envelope_id: What a report names (section 4.4): the `message_id` of the send message.
            address: The recipient's address. One that is not ASCII is not named (RFC 6533 has its own form).
        """
        mail = b" RET=" + self._return + b" ENVID=" + _xtext(envelope_id)
        rcpt = b" NOTIFY=" + self._notify
        return DsnOptions(mail, rcpt + b" ORCPT=rfc822;" + _xtext(address) if address.isascii() else rcpt)


def _xtext(text: str) -> bytes:
    return _NOT_XTEXT.sub(lambda found: b"+%02X" % found[0][0], text.encode("ascii"))
