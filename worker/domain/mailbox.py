"""Mail addresses in the form that SMTP uses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import getaddresses
from typing import Final

from email_validator import EmailNotValidError, validate_email

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_PLAIN: Final = re.compile(rf"{_ATEXT}(?:\.{_ATEXT})*@{_LABEL}(?:\.{_LABEL})*")
"""A dot-atom address in ASCII (RFC 5321 section 4.1.2). Nearly all addresses are such; they need no
change."""
_LONGEST: Final = 254
"""The most octets of an address; a path has 256 with its brackets (RFC 5321 section 4.5.3.1.3)."""


_LIKE_ENCODED_WORD: Final = "=?"
"""The beginning of an encoded word, which no address may hold (RFC 2047 section 5). Python's own parser and
some mail programs decode it, and then see another address. No such mailbox is known."""


class MailboxInvalid(ValueError):
    """The text is not a mail address; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """An address that SMTP commands and header lines can carry as it is."""

    name: str
    """The display name; empty for none."""
    address: str
    """ASCII, its domain in A-labels (RFC 5891), unless `smtputf8`."""
    smtputf8: bool = False
    """Whether the local part is not ASCII, so that every server needs SMTPUTF8 (RFC 6531)."""

    @property
    def domain(self) -> str:
        """The part after the last `@`."""
        return self.address.rpartition("@")[2]


def mailbox(address: str, name: str = "") -> Mailbox:
    """Reads a bare address.

    A domain that is not ASCII is written in A-labels, which every server accepts. Only a local part that is
    not ASCII needs SMTPUTF8.

    Raises:
        MailboxInvalid: It is not an address that an SMTP command may carry.
    """
    if _LIKE_ENCODED_WORD in address:
        raise MailboxInvalid(f"{address!r} is not a mail address: it holds “=?”, as encoded words begin.")
    if len(address) <= _LONGEST and _PLAIN.fullmatch(address):
        return Mailbox(name, address)
    try:
        valid = validate_email(
            address,
            check_deliverability=False,
            globally_deliverable=False,
            allow_quoted_local=True,
            allow_domain_literal=True,
        )
    except EmailNotValidError as invalid:
        raise MailboxInvalid(f"{address!r} is not a mail address: {invalid}") from invalid
    if valid.ascii_email is not None:
        return Mailbox(name, valid.ascii_email)
    return Mailbox(name, valid.normalized, smtputf8=True)


def named_mailbox(text: str) -> Mailbox:
    """Reads one address with or without a display name: `News <news@example.org>` or `news@example.org`.

    Raises:
        MailboxInvalid: It is not exactly one address, or contains a control character.
    """
    if not text.isprintable():
        raise MailboxInvalid(f"{text!r} holds a line break or another control character.")
    found = getaddresses([text])
    if len(found) != 1 or not found[0][1]:
        raise MailboxInvalid(f"{text!r} is not one mail address such as “News <news@example.org>”.")
    name, address = found[0]
    return mailbox(address, name)
