"""Opens a mail that came from anywhere: its header, its texts and its reports, in bounded time and memory.

The parser is the standard library's. It takes any size, any nesting (and compares each line with each level)
and any codec (the time of some grows with the square of the text). So the mail is cut before, and charsets
are those of a list.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_MAIL: Final = 256_000
"""Octets that are read. A report comes before the mail that it returns, however long that one is."""
_MOST_CONTAINERS: Final = 12
"""Parts with parts that are read. Reports have three levels; a mail is cut before the next container."""
_MOST_PARTS: Final = 100
LONGEST_TEXT: Final = 100_000
"""Characters of all texts together that are read."""
_LONGEST_FIELD: Final = 4_000

_CONTAINER: Final = re.compile(
    rb"^content-type:[ \t]*(?:\r?\n[ \t]+)?(?:multipart|message)/", re.IGNORECASE | re.MULTILINE
)
_CHARSET: Final = re.compile(
    r"us-ascii|ascii|utf-?8|iso-?8859-\d{1,2}|latin-?1|(windows-|cp)(125\d|932)|koi8-[ru]|iso-2022-(jp|kr)(-\w{1,4})?"
    r"|euc-(jp|kr)|shift_?jis|gb2312|gbk|gb18030|big5",
    re.IGNORECASE,
)
_LONG_NUMBER: Final = re.compile(rb"\*\d{4,}")
"""The number of a continued parameter (RFC 2231). The parser raises for one of more than 4,300 digits."""
_TAG: Final = re.compile(r"<[^<>]*>")
_UNSEEN: Final = re.compile(r"</?(?:style|script)\b[^<>]*>", re.IGNORECASE)
_REPORTS: Final = frozenset(
    {"message/delivery-status", "message/global-delivery-status", "message/feedback-report"}
)
_HEADERS: Final = frozenset({"text/rfc822-headers", "message/rfc822-headers", "message/global-headers"})
_MAILS: Final = frozenset({"message/rfc822", "message/global", "message/partial"})


@dataclass(frozen=True, slots=True)
class Opened:
    """A mail, as far as it was read."""

    header: Message
    """The fields of its header, and no body: `header.get(name)` gives the first of a name."""
    kind: str
    """Its content type in lower case."""
    report_type: str
    """The parameter `report-type` of a `multipart/report` (RFC 6522) in lower case; empty for none."""
    texts: tuple[str, ...]
    """The texts for a person, in their order, lines parted by line feeds. Texts in HTML come without tags."""
    reports: tuple[tuple[str, str], ...]
    """The reports for a program: content type and text."""
    returned: tuple[str, ...]
    """The mails, or headers of mails, that it returns: the text of each, as far as it was read."""


def open_mail(data: bytes) -> Opened:
    """Opens a mail.

    Args:
        data: Its octets, of any number and with any content.

    Returns:
        What it holds. Nothing is raised: what is broken is read as text.
    """
    data = data[:LONGEST_MAIL]
    for number, found in enumerate(_CONTAINER.finditer(data), 1):
        if number > _MOST_CONTAINERS:
            data = data[: found.start()]
            break
    mail = BytesParser().parsebytes(_LONG_NUMBER.sub(b"*0", data))
    texts: list[str] = []
    reports: list[tuple[str, str]] = []
    returned: list[str] = []
    room = LONGEST_TEXT
    for number, part in enumerate(_leaves(mail)):
        if number == _MOST_PARTS or room <= 0:
            break
        kind = part.get_content_type()
        if kind in _REPORTS:
            text = _flat(part)[:room]
            reports.append((kind, text))
        elif kind in _MAILS or kind in _HEADERS:
            text = _flat(part)[:room]
            returned.append(text)
        elif (
            kind in ("text/plain", "text/html") or part.get_content_maintype() == "multipart"
        ):  # without parts
            text = _text(part, html_text=kind == "text/html")[:room]
            texts.append(text)
        else:
            continue
        room -= len(text)
    return Opened(
        header=mail,
        kind=mail.get_content_type(),
        report_type=_parameter(mail, "report-type"),
        texts=tuple(texts),
        reports=tuple(reports),
        returned=tuple(returned),
    )


def field(header: Message, name: str) -> str:
    """Returns the first field of a name, unfolded and cut; empty for none."""
    value = header.get(name)
    return "" if value is None else " ".join(str(value)[:_LONGEST_FIELD].split())


def _leaves(mail: Message) -> Iterator[Message]:
    """Yields the parts in their order. Reports and returned mails are leaves: what is in them is not ours."""
    open_parts = [mail]
    while open_parts:
        part = open_parts.pop()
        if part.get_content_maintype() == "multipart" and part.is_multipart():
            open_parts += reversed(_inner(part))
        else:
            yield part


def _flat(part: Message) -> str:
    """The content of a `message/…` part as text: the parser reads it as mails, or as a list of headers."""
    if not part.is_multipart():
        return _text(part, html_text=False)
    text = "\n\n".join(_written(inner) for inner in _inner(part))
    encoding = field(part, "content-transfer-encoding").lower()
    if encoding not in ("base64", "quoted-printable"):
        return text
    # RFC 2046 section 5.2.1 forbids it; some gateways encode what they pass on all the same.
    encoded = Message()
    encoded["Content-Transfer-Encoding"] = encoding
    encoded.set_payload(text)
    return _text(encoded, html_text=False)


def _written(mail: Message) -> str:
    fields = "\n".join(f"{name}: {value}" for name, value in mail.items())
    # Of a returned mail only the header is of use; what a report has below its fields belongs to it.
    body = "" if mail.is_multipart() else _text(mail, html_text=False)
    return _sound(f"{fields}\n\n{body}".strip("\n").replace("\r\n", "\n"))


def _inner(part: Message) -> list[Message]:
    """The parts of a part that has some: `get_payload` of any other may raise for its charset."""
    content = part.get_payload()
    inner = content[:_MOST_PARTS] if isinstance(content, list) else []
    return [part for part in inner if isinstance(part, Message)]


def _text(part: Message, *, html_text: bool) -> str:
    octets = part.get_payload(decode=True)
    if not isinstance(octets, bytes):
        return ""
    charset = str(part.get_content_charset() or "utf-8")
    known = charset if _CHARSET.fullmatch(charset) else "utf-8"
    try:
        text = octets.decode(known, "replace")
    except LookupError:
        text = octets.decode("utf-8", "replace")
    if html_text:
        seen = "\n".join(_UNSEEN.split(text)[::2])
        text = html.unescape(_TAG.sub("\n", seen))
    return _sound(text.replace("\r\n", "\n").replace("\r", "\n"))


def _sound(text: str) -> str:
    """Without surrogates, which are octets that are not ASCII, and without NUL: Postgres cannot store it."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\x00", "")


def _parameter(mail: Message, name: str) -> str:
    value = mail.get_param(name, "")
    return value.strip().lower() if isinstance(value, str) else ""
