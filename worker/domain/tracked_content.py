"""Puts tracked links and the pixel into a content, once per preparation.

The author's source is kept to the letter: only the targets of links are replaced, each by the variable that
stands for it, and `data-notrack` is removed. Python's HTML parser says where the tags are.

Before that, everything of the template language is covered by a character that neither HTML nor a URL gives a
meaning, one for one, so that places in the covered text are places in the source.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Final, NamedTuple

from jinja2 import nodes
from pydantic import BaseModel, ConfigDict

from worker.domain.link_names import FOR_AUTHORS, PIXEL, link_name
from worker.domain.links import MOST_LINKS, web_address
from worker.domain.template_language import Refused
from worker.domain.templates import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.domain.content import EmailContent

_WEB: Final = re.compile(r"https?://", re.IGNORECASE)
_ATTRIBUTE: Final = re.compile(
    r"""[\s/]*(?P<name>[^\s/>=][^\s/>=]*)(?P<value>\s*=\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[^\s>]+)))?"""
)
"""An attribute in a tag that the parser took for one (HTML, 13.2.5.32 to 39)."""
_IN_TEXT: Final = re.compile(r"https?://[^\s<>\"“”«»‘’„]+", re.IGNORECASE)
_AFTER_A_LINK: Final = ".,;:!?)]}'*_…"
"""What ends a sentence or a bracket around a link, and is not of the link. As mail programs see it."""
_LINE_END: Final = re.compile(r"\r\n|\r")


class Tracking(BaseModel):
    """The `[tracking]` table of a delivery file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    opens: bool = False
    """Whether a pixel tells opens."""
    clicks: bool = False
    """Whether links lead over the tracker."""


class Link(NamedTuple):
    """A tracked link of a content."""

    number: int
    part: str
    """`html` or `text`: the language of its target."""
    target: str
    """The template of its target; of the HTML as it stands in the attribute, with its entities."""


class NotTrackable(ValueError):
    """A content cannot be tracked; the message says why."""


@dataclass(frozen=True, slots=True)
class TrackedContent:
    """A content with tracked links, and the links by number, from 1."""

    content: EmailContent
    links: tuple[Link, ...]


def track(content: EmailContent, tracking: Tracking) -> TrackedContent:
    """Puts the tracked links and the pixel in.

    A link stays as it is if it leads to no web site, if its tag has `data-notrack`, if it is one of Sendoff's
    own, or if its target needs a variable that the template itself sets: a click could not fill that in.
    The same target twice in a part is one link.

    Args:
        content: A content in which `template_checks.check` found nothing.
        tracking: What to track.

    Raises:
        NotTrackable: There are more than `MOST_LINKS`, or a part becomes too large with them.
    """
    numbers: dict[tuple[str, str], int] = {}
    untracked: set[str] = set()  # a text that was made of the HTML has their targets too
    parts: dict[str, str] = {}
    for name in ("html", "text"):
        source = getattr(content, name)
        if source is None:
            continue
        part = _Part(name, source, numbers, untracked)
        if tracking.clicks:
            part.replace_links()
        if tracking.opens and name == "html":
            part.put_pixel()
        parts[name] = part.edited()
    if len(numbers) > MOST_LINKS:
        raise NotTrackable(f"it has {len(numbers):,} links; {MOST_LINKS:,} can be tracked")
    links = tuple(Link(number, part, target) for (part, target), number in numbers.items())
    return TrackedContent(content.model_copy(update=parts), links)


class _Part:
    """One part of a content, and the edits that were found."""

    def __init__(
        self, name: str, source: str, numbers: dict[tuple[str, str], int], untracked: set[str]
    ) -> None:
        self._name = name
        self._untracked = untracked
        self._source = _LINE_END.sub("\n", source)  # as Jinja reads it
        self._numbers = numbers
        self._environment = environment(name)
        tree, _ = self._environment.read(source)
        self._set = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "store"} | {"loop"}
        self._cover, self._covered = self._covered_source()
        self._tags = _Tags(self._covered) if name == "html" else None
        self._edits: list[tuple[int, int, str]] = []

    def _covered_source(self) -> tuple[str, str]:
        """Returns a character that the source does not hold, and the source with its templates covered."""
        source = self._source
        cover = next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in source)
        shown: list[tuple[int, int]] = []
        at = 0
        raw = False
        for _, kind, text in self._environment.lex(source):
            # The lexer leaves out white space that a template strips, and nothing else.
            begin = source.index(text, at)
            at = begin + len(text)
            raw = kind == "raw_begin" or (raw and kind != "raw_end")
            if kind == "data" and not raw:
                shown.append((begin, at))
        covered = []
        at = 0
        for begin, end in shown:
            covered += [cover * (begin - at), source[begin:end]]
            at = end
        covered.append(cover * (len(source) - at))
        return cover, "".join(covered)

    def replace_links(self) -> None:
        for begin, end in self._html_links() if self._tags else self._text_links():
            target = self._source[begin:end]
            number = self._numbers.setdefault((self._name, target), len(self._numbers) + 1)
            self._edits.append((begin, end, f"{{{{ {link_name(number)} }}}}"))

    def put_pixel(self) -> None:
        at = self._tags.body_end if self._tags else None
        place = len(self._source) if at is None else at
        self._edits.append((place, place, f"{{{{ {PIXEL} }}}}"))

    def edited(self) -> str:
        pieces = []
        at = 0
        for begin, end, text in sorted(self._edits):
            before = self._source[at:begin]
            if text and before.endswith("{"):  # which would be of our braces
                before = f"{before[:-1]}{{{{ '{{' }}}}"
            pieces += [before, text]
            at = end
        edited = "".join([*pieces, self._source[at:]])
        try:
            self._environment.read(edited)
        except Refused as refused:
            line, words = refused.faults[0]
            raise NotTrackable(f"with tracked links, {self._name}, line {line}: {words}") from refused
        return edited

    def _html_links(self) -> Iterator[tuple[int, int]]:
        """Yields the places of the targets, and adds the removal of `data-notrack` to the edits."""
        for begin, tag in self._tags.found if self._tags else ():
            if re.split(f"[{self._cover}]", tag.name)[0] not in {"a", "area"}:
                continue
            place = None
            tracked = True
            for match in _ATTRIBUTE.finditer(tag.text, 1 + len(tag.name)):
                name = match["name"].lstrip(self._cover).lower()
                if name == "data-notrack":
                    tracked = False
                    self._edits.append((begin + match.start(), begin + match.end(), ""))
                elif name == "href" and place is None:  # of two, the first counts
                    span = next((match.span(g) for g in ("double", "single", "bare") if match[g]), (0, 0))
                    place = self._stripped(begin + span[0], begin + span[1])
            if place is None:
                continue
            if not tracked:
                self._untracked.add(html.unescape(self._source[place[0] : place[1]]))
            elif self._trackable(*place):
                yield place

    def _text_links(self) -> Iterator[tuple[int, int]]:
        for match in _IN_TEXT.finditer(self._covered):
            begin, end = match.span()
            while self._covered[end - 1] in _AFTER_A_LINK and not _closes(self._covered[begin:end]):
                end -= 1
            if self._source[begin:end] in self._untracked:
                continue
            if self._trackable(begin, end):
                yield begin, end
                continue
            # A statement behind the link may be covered with it, such as {% endif %}.
            shorter = begin + len(self._covered[begin:end].rstrip(self._cover))
            if shorter < end and end == match.end() and self._source[shorter:].startswith("{%"):
                yield from [(begin, shorter)] if self._trackable(begin, shorter) else []

    def _stripped(self, begin: int, end: int) -> tuple[int, int]:
        """Returns a place without the white space around a target, which browsers leave out."""
        text = self._covered[begin:end]
        return end - len(text.lstrip()), begin + len(text.rstrip())

    def _trackable(self, begin: int, end: int) -> bool:
        covered = html.unescape(self._covered[begin:end])
        if self._cover not in covered:
            return web_address(covered) is not None
        if not (_WEB.match(covered) or covered.startswith(self._cover)):
            return False
        try:
            tree, _ = self._environment.read(self._source[begin:end])
        except Refused:
            return False  # a statement begins in it and ends elsewhere, or the other way round
        names = {node.name for node in tree.find_all(nodes.Name)}
        return not names & (self._set | set(FOR_AUTHORS))


def _closes(link: str) -> bool:
    """Returns whether a link ends with a bracket that was opened in it, as those of Wikipedia may."""
    return link.endswith(")") and link.count("(") >= link.count(")")


@dataclass(frozen=True, slots=True)
class _Tag:
    name: str
    text: str


class _Tags(HTMLParser):
    """The start tags of a source with their places, and the place of the last end of a body."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[tuple[int, _Tag]] = []
        self.body_end: int | None = None
        self._lines = [0, *(match.end() for match in re.finditer("\n", source))]
        self.feed(source)
        self.close()

    def _place(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.found.append((self._place(), _Tag(tag, self.get_starttag_text() or "")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "body":
            self.body_end = self._place()


def language(source: str) -> str:
    """Returns the language that an HTML document says it is in (`<html lang="de">`); empty if it does not."""
    for _, tag in _Tags(source).found:
        if tag.name == "html":
            for match in _ATTRIBUTE.finditer(tag.text, len("<html")):
                if match["name"].lower() == "lang":
                    return match["double"] or match["single"] or match["bare"] or ""
    return ""
