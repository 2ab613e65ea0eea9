"""Header fields that an author gives: which names are free, and what each kind of field may hold.

A field is free text, a list of URIs, or identifiers. What separates the items of a list in one kind is an
ordinary character in another. So a value is escaped for the kind of its field, and can never add an item.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_HEADER: Final = 4_000
"""The most characters of a header part: folding and encoding it takes 2 ms."""
_LONGEST_NAME: Final = 50
"""The most characters of a name. An encoded word must fit behind it into 76 (RFC 2047 section 2)."""
_FIELD_NAME: Final = re.compile(r"[!-9;-~]+")
"""A header's name: printable ASCII without the colon (RFC 5322 section 2.2)."""

_RECEIPTS: Final = frozenset(
    {
        "confirm-reading-to",
        "disposition-notification-options",
        "disposition-notification-to",
        "errors-to",
        "generate-delivery-report",
        "prevent-nondelivery-report",
        "read-receipt-to",
        "registered-mail-reply-requested-by",
        "return-receipt-requested",
        "return-receipt-to",
        "x-confirm-reading-to",
    }
)
"""Headers that ask every recipient's program for a receipt, or send reports to another mailbox."""
_BUILT: Final = frozenset(
    {
        "apparently-to",
        "bcc",
        "cc",
        "date",
        "delivered-to",
        "domainkey-signature",
        "envelope-to",
        "from",
        "mail-followup-to",
        "mail-reply-to",
        "message-id",
        "mime-version",
        "original-recipient",
        "reply-to",
        "return-path",
        "sender",
        "subject",
        "to",
        "x-envelope-from",
        "x-envelope-to",
        "x-original-to",
    }
)
"""Headers that the message builder or a mail server writes, or that would name further mailboxes. A server
that finds `Delivered-To` with its own mailbox takes the message for one that runs in a circle."""
_TRANSIT: Final = ("content-", "resent-", "arc-", "dkim-", "received", "authentication-results")
"""Prefixes of the names of headers that describe the body, or that only mail servers may write."""


class HeaderInvalid(ValueError):
    """A header cannot have this value; the message says why."""


class Kind(Enum):
    """What a header field holds."""

    TEXT = "text"
    """Free text. Characters beyond ASCII are sent in encoded words (RFC 2047)."""
    URIS = "URIs"
    """URIs in angle brackets, separated by commas (RFC 2369)."""
    LIST_ID = "list id"
    """A phrase, and an identifier in angle brackets (RFC 2919)."""
    IDS = "identifiers"
    """Printable ASCII that programs compare: no encoded words."""


_KINDS: Final = {
    "auto-submitted": Kind.IDS,
    "feedback-id": Kind.IDS,
    "in-reply-to": Kind.IDS,
    "importance": Kind.IDS,
    "list-archive": Kind.URIS,
    "list-help": Kind.URIS,
    "list-id": Kind.LIST_ID,
    "list-owner": Kind.URIS,
    "list-post": Kind.URIS,
    "list-subscribe": Kind.URIS,
    "list-unsubscribe": Kind.URIS,
    "list-unsubscribe-post": Kind.IDS,
    "precedence": Kind.IDS,
    "priority": Kind.IDS,
    "references": Kind.IDS,
    "x-priority": Kind.IDS,
}
"""The kinds by name; every other field is free text."""

_HALF_ESCAPE = r"%(?![0-9A-Fa-f]{2})"
_NOT_IN_URI: Final = re.compile(rf"{_HALF_ESCAPE}|[^!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]")
"""What no URI holds (RFC 3986 section 2). An escape such as %2F stays as it is."""
_NOT_IN_VALUE_OF_URI: Final = re.compile(rf"{_HALF_ESCAPE}|[^!#$%&'()*+\-./0-9:;=?@A-Z\[\]_a-z~]")
"""The same without the comma, since some readers cut a list at every comma."""
_NOT_IN_ID: Final = re.compile(r"[^+\-./0-9=@A-Z_a-z~]")
"""What separates identifiers or their parts, such as the colon of Feedback-ID, and what is not ASCII."""
_NOT_IN_LIST_ID: Final = re.compile(r"[^!#$%&'*+\-./0-9=?A-Z^_`a-z{|}~]")
_BRACKETS: Final = re.compile(r"[<>]")
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:.+")
_BRACKETED: Final = re.compile(r"<([^<>]*)>")
_LIST: Final = re.compile(r"<>(?: *, *<>)*")
_LIST_ID: Final = re.compile(r"([^<>]*)<([^<>]+)>|([^<> ]+)")
_PRINTABLE: Final = re.compile(r"[ -~]*")
_LIKE_ENCODED_WORD: Final = re.compile(r"=(?=\?[^? ]+\?[bBqQ]\?[^? ]*\?=)")
"""The first sign of what a reader would take for an encoded word and decode."""


def kind_of(name: str) -> Kind:
    """Returns the kind of a field, by its name in upper or lower case."""
    return _KINDS.get(name.lower(), Kind.TEXT)


def refuse_name(name: str) -> str | None:
    """Returns why an author may not give a header of this name; None if it is free."""
    lower = name.lower()
    if not _FIELD_NAME.fullmatch(name):
        return f"{name!r} is not a header name: printable ASCII without spaces and colons"
    if len(name) > _LONGEST_NAME:
        return f"the name of the header {name} is longer than {_LONGEST_NAME} characters"
    if lower in _RECEIPTS:
        return f"the header {name} would ask every recipient's mail program for receipts; leave it out"
    if lower in _BUILT or lower.startswith(_TRANSIT):
        return f"the header {name} is written by Sendoff or by mail servers; leave it out"
    return None


def _percent_encoded(unfit: re.Pattern[str]) -> Callable[[Any], str]:
    def encode(value: Any) -> str:  # noqa: ANN401 - whatever a template prints
        text = str(value)
        # A value this long is refused with the whole header: encoding 200,000 characters would take 0.1 s.
        return text if len(text) > LONGEST_HEADER else unfit.sub(_percents, text)

    return encode


def _percents(found: re.Match[str]) -> str:
    return quote(found.group(), safe="")


ESCAPES: Final[dict[Kind, Callable[[Any], str]]] = {
    Kind.URIS: _percent_encoded(_NOT_IN_VALUE_OF_URI),
    Kind.LIST_ID: _percent_encoded(_BRACKETS),
    Kind.IDS: _percent_encoded(_NOT_IN_ID),
}
"""What is done to each value that a template puts into a field, by kind. Free text needs nothing."""


def shaped(name: str, value: str) -> str:
    """Returns a field's value in the form of its kind.

    Args:
        name: The field.
        value: One line, whose variable parts went through `ESCAPES`.

    Returns:
        The value; empty if the field must be left out. Except for free text and the phrase of a List-Id it
        is ASCII, and holds nothing that looks like an encoded word.

    Raises:
        HeaderInvalid: It does not have that form; the message says why.
    """
    kind = kind_of(name)
    if not value or kind is Kind.TEXT:
        return value
    if kind is Kind.URIS:
        return value if name.lower() == "list-post" and value == "NO" else _uri_list(value)
    if kind is Kind.LIST_ID:
        return _list_id(value)
    if not _PRINTABLE.fullmatch(value) or "=?" in value:
        raise HeaderInvalid("it holds identifiers, which are printable ASCII without “=?”")
    return value


def uri(text: str) -> str:
    """Returns a URI in which everything is escaped that no URI holds.

    Raises:
        HeaderInvalid: It is not an absolute URI.
    """
    escaped = _LIKE_ENCODED_WORD.sub("%3D", _NOT_IN_URI.sub(_percents, text.strip(" ")))
    if not _URI.fullmatch(escaped):
        raise HeaderInvalid(f"“{text[:100]}” is not a whole address such as https://… or mailto:…")
    return escaped


def _uri_list(value: str) -> str:
    if "<" not in value:
        return f"<{uri(value)}>"
    if not _LIST.fullmatch(_BRACKETED.sub("<>", value)):
        raise HeaderInvalid("it is a list of addresses: each in angle brackets, with commas between them")
    return ", ".join([f"<{uri(one)}>" for one in _BRACKETED.findall(value) if one.strip(" ")])


def _list_id(value: str) -> str:
    found = _LIST_ID.fullmatch(value)
    if found is None:
        raise HeaderInvalid("it is an identifier in angle brackets, such as “News <news.example.org>”")
    phrase, identifier = (found[1] or "").strip(" "), found[2] or found[3]
    identifier = f"<{_LIKE_ENCODED_WORD.sub('%3D', _NOT_IN_LIST_ID.sub(_percents, identifier))}>"
    return f"{phrase} {identifier}" if phrase else identifier
