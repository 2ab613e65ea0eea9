"""What a careful person would check before the OK. Pure.

Findings warn. An installation may say which of them block.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from html.parser import HTMLParser
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from contracts.commands import Finding, Reason
from worker.domain.refusals import Refused
from worker.domain.template_branches import untried
from worker.domain.templates import Renderer, RenderFailed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from worker.domain.content import EmailContent
    from worker.domain.template_branches import Branch
    from worker.domain.templates import Rendered

LONGEST_SUBJECT: Final = 78
"""Characters. Programs show 30 to 80 of them."""
LARGEST_HTML: Final = 102_000
"""Octets of HTML. Gmail hides what is beyond."""
GROWTH: Final = 2.0
"""An audience this many times the last of its label is told."""
LEAST_GROWTH: Final = 100
"""Recipients by which it must have grown, too."""
_READ: Final = 5
"""Messages whose links are read: reading 100 kB of HTML takes 20 ms."""
_OPT_OUT: Final = re.compile(
    r"unsubscri|opt[-_ ]?out|abmeld|abbestell|d[ée]sabonn|d[ée]sinscri|cancelar|baja|disiscri|uitschrijv"
    r"|afmeld|avregistr|avsluta|wypis|отпис|配信停止|退订|退訂|수신거부",
    re.IGNORECASE,
)
"""Words for unsubscribing, in links or beside them."""
_BARE_LINK: Final = re.compile(r"https?://[^\s<>\"')]+", re.IGNORECASE)
_LOCAL: Final = ("localhost", "local", "internal", "lan", "home", "test", "invalid")
"""Last labels of hosts that no recipient reaches (RFC 6761 and habit)."""


class Check(StrEnum):
    """The kinds of findings, as `SENDOFF_PREFLIGHT_BLOCKS` names them."""

    NO_OPT_OUT = "no_opt_out"
    """Nothing in the message says how to unsubscribe."""
    NO_TEXT = "no_text"
    """There is no text part."""
    LONG_SUBJECT = "long_subject"
    """The subject is longer than programs show."""
    IMAGE_WITHOUT_ALT = "image_without_alt"
    """An image has no text for those who do not see it."""
    INSECURE_LINK = "insecure_link"
    """A link or an image is not https."""
    LOCAL_LINK = "local_link"
    """A link leads to a host that recipients cannot reach."""
    UNTRIED_BRANCH = "untried_branch"
    """No recipient of the sample takes a branch of a template."""
    TOO_LARGE = "too_large"
    """The HTML is larger than Gmail shows."""
    SPF = "spf"
    """The domain of the envelope sender has no SPF record."""
    DKIM = "dkim"
    """The key that signs is not published, or another one is."""
    DMARC = "dmarc"
    """The domain of `from` has no DMARC record."""
    DNS = "dns"
    """The DNS did not answer."""
    AUDIENCE_GREW = "audience_grew"
    """The audience is much larger than the last of this label."""
    DUPLICATE = "duplicate"
    """The same content was confirmed within a day."""


Findings = tuple[Finding, ...]
"""What a person is told."""


class Found(NamedTuple):
    """A finding, before it is known whether it blocks."""

    check: str
    message: str
    """A sentence for a person."""


@dataclass(frozen=True, slots=True)
class Others:
    """What is known of other deliveries."""

    stored: tuple[Found, ...] = ()
    """What the preparation found in this one."""
    last_id: int | None = None
    """The last confirmed delivery of the same label and channel."""
    last_to_deliver: int = 0
    """The number of its recipients."""
    same_id: int | None = None
    """A delivery with the same content that was confirmed within a day."""
    same_confirmed_at: datetime | None = None
    """When that was."""


def look(content: EmailContent, recipients: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Found]:
    """Returns what a content shows by itself, filled in for some recipients.

    Args:
        content: The content as it is stored.
        recipients: The number of each recipient, and the values by name.
    """
    renderer = Renderer(content)
    links = renderer.links.examples()
    messages: list[Rendered] = []
    found: list[Found] = []
    subject, size = 0, 0
    for number, values in recipients:
        try:
            message = renderer.render({**values, **links, "recipient": number, "delivery_id": 1})
        except RenderFailed:
            continue
        subject = max(subject, len(message.subject))
        size = max(size, len((message.html or "").encode()))
        if len(messages) < _READ:
            messages.append(message)
    found += _opt_out(content, messages)
    if content.text is None:
        found.append(Found(Check.NO_TEXT, "There is no text part: filters count that against the sender."))
    if subject > LONGEST_SUBJECT:
        words = f"A subject has {subject} characters; most programs show fewer than {LONGEST_SUBJECT}."
        found.append(Found(Check.LONG_SUBJECT, words))
    if size > LARGEST_HTML:
        words = f"The HTML has up to {size:,} octets; Gmail hides what is beyond {LARGEST_HTML:,}."
        found.append(Found(Check.TOO_LARGE, words))
    found += look_at_links(messages, f"{content.html or ''}{content.text or ''}")
    found += untried_branches(untried(_authored(content), recipients))
    return found


def untried_branches(branches: Iterable[Branch]) -> Iterator[Found]:
    """Yields what is told of branches that no recipient of the sample takes."""
    for branch in branches:
        words = (
            f"{branch.part}, line {branch.line}: no recipient of the sample takes “{branch.statement}”: "
            f"look at it with a proof."
        )
        yield Found(Check.UNTRIED_BRANCH, words)


def _authored(content: EmailContent) -> EmailContent:
    """Returns the content without a text that was made from its HTML: its branches would be told twice."""
    if content.html is None or content.text is None:
        return content
    from worker.domain.plain_text import text_of  # noqa: PLC0415 - it takes 0.1 s to load

    return content.model_copy(update={"text": None}) if text_of(content.html) == content.text else content


def _opt_out(content: EmailContent, messages: Sequence[Rendered]) -> Iterator[Found]:
    sources = [content.html or "", content.text or ""]
    bodies = [text for message in messages for text in (message.html, message.text) if text]
    if any(map(_OPT_OUT.search, [*sources, *bodies])):
        return
    header = any("List-Unsubscribe" in message.headers for message in messages)
    where = (
        "The body has no link to unsubscribe, only the header"
        if header
        else "Nothing says how to unsubscribe"
    )
    yield Found(Check.NO_OPT_OUT, f"{where}: most countries ask for one in such mail.")


def look_at_links(messages: Iterable[Rendered], source: str) -> Iterator[Found]:
    """Yields what is found in the links and images of some messages.

    Args:
        messages: The messages.
        source: The templates that they were made of.
    """
    insecure: dict[str, None] = {}
    local: dict[str, None] = {}
    blind: dict[str, None] = {}
    for message in messages:
        page = _Page()
        page.feed(message.html or "")
        page.close()
        blind |= page.blind
        for link in [*page.links, *_bare_links(message.text or "")]:
            scheme, host = _read_link(link)
            if scheme == "http":
                insecure[link] = None
            if scheme in ("http", "https", "") and _unreachable(host):
                local[link] = None
    for check, links, words in (
        (Check.IMAGE_WITHOUT_ALT, blind, "has no alt, which stands for it where images are not shown"),
        (Check.INSECURE_LINK, insecure, "is not https"),
        (Check.LOCAL_LINK, local, "leads nowhere that recipients can reach"),
    ):
        if links:
            first, *others = dict.fromkeys(_shown(link, source) for link in links)
            more = f", and {len(others)} more" if others else ""
            yield Found(check, f"{first} {words}{more}.")


def _shown(link: str, source: str) -> str:
    """Returns words for a link that hold no value of a recipient: findings are kept, and shown to others."""
    if link in source:
        return f"“{link[:200]}”"
    scheme, host = _read_link(link)
    start = f"{scheme}://{host}"
    return f"“{start}/…”" if host and start in source.lower() else "A link that comes out of a value"


def _bare_links(text: str) -> list[str]:
    return [link.rstrip("].,;:!?") for link in _BARE_LINK.findall(text)]


def _read_link(link: str) -> tuple[str, str]:
    try:
        parts = urlsplit(link)
        return parts.scheme.lower(), parts.hostname or ""
    except ValueError:
        return "", ""


def _unreachable(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        labels = host.rstrip(".").lower().split(".")
        return len(labels) < 2 or labels[-1] in _LOCAL  # noqa: PLR2004 - a name and its domain


class _Page(HTMLParser):
    """Collects the links and images of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.blind: dict[str, None] = {}
        """Images without `alt`."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Reads a tag."""
        values = dict(attrs)
        name = {"a": "href", "area": "href", "img": "src"}.get(tag)
        link = (values.get(name) or "").strip() if name else ""
        if tag == "img" and "alt" not in values:
            self.blind[link] = None
        if link and not link.startswith("#"):
            self.links.append(link)


def compare(to_deliver: int, others: Others) -> list[Found]:
    """Returns what a delivery shows beside others.

    Args:
        to_deliver: The number of its recipients.
        others: What is known of others.
    """
    found = []
    last = others.last_to_deliver
    if others.last_id is not None and to_deliver > last * GROWTH and to_deliver - last >= LEAST_GROWTH:
        words = f"It goes to {to_deliver:,} recipients; the last of this label, delivery {others.last_id}, to"
        found.append(Found(Check.AUDIENCE_GREW, f"{words} {last:,}."))
    if others.same_id is not None and others.same_confirmed_at is not None:
        when = others.same_confirmed_at.isoformat(timespec="seconds")
        words = f"The same content was confirmed at {when} as delivery {others.same_id}."
        found.append(Found(Check.DUPLICATE, words))
    return found


def findings(to_deliver: int, others: Others, blocks: Collection[str]) -> Findings:
    """Returns all findings of a delivery, those that block first.

    Args:
        to_deliver: The number of its recipients.
        others: What the preparation found, and what is known of other deliveries.
        blocks: The checks whose findings block.
    """
    found = [*others.stored, *compare(to_deliver, others)]
    told = [Finding(check=one.check, message=one.message, blocks=one.check in blocks) for one in found]
    return tuple(sorted(told, key=lambda finding: not finding.blocks))


def refuse_findings(told: Iterable[Finding]) -> Refused | None:
    """Returns why a definitive confirmation must be refused, or None if no finding blocks."""
    blocking = [finding for finding in told if finding.blocks]
    if not blocking:
        return None
    words = " ".join(finding.message for finding in blocking)
    return Refused(Reason.PREFLIGHT, f"The preflight found what this installation does not send: {words}")
