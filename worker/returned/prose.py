"""Reads returned mail that has no report for programs: the words that mail servers write for people.

Such mails name a recipient on a line of its own or behind a few known words, and quote the reply of the
server that refused it, mostly behind a colon. The rules are about these forms, not about servers by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from worker.returned.replies import LONGEST, Reply, read_reply, read_status

_MOST_LINES: Final = 1_500
_LONGEST_LINE: Final = 1_000
_MOST_RECIPIENTS: Final = 100
_LINES_BEFORE: Final = 4

_ADDRESS: Final = r"[^\s<>()\[\],;:\"'@]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,250}[A-Za-z0-9])?"
_AN_ADDRESS: Final = re.compile(rf"(?<![\w.+=@-]){_ADDRESS}")
_ALONE: Final = re.compile(
    rf"[\s<>(*\"'-]{{0,20}}({_ADDRESS})[>)\"']{{0,3}}(?:\s*<[^<>]{{1,330}}>)?\s*(?:\([^()]{{0,200}}\))?\s*[:,;.]?\s*"
)
_FIRST: Final = re.compile(rf"[\s<(*\"'-]{{0,20}}({_ADDRESS})[>)\"']{{0,3}}\s*:?\s")
_BEHIND: Final = re.compile(
    rf"\b(?:rcpt to|recipient(?: address)?|to|for|expanded from|undeliverable|address)"
    rf"\s*:?\s*[<\"'(]{{0,2}}({_ADDRESS})",
    re.IGNORECASE,
)
_OF_SENDER: Final = re.compile(r"\bmail from\b|sender was rejected", re.IGNORECASE)
_OF_RECIPIENT: Final = re.compile(r"\brcpt to\b|not like recipient", re.IGNORECASE)
_OF_BODY: Final = re.compile(r">>> (?:data|bdat)\b|end of data|final data|sent the message", re.IGNORECASE)
_QUOTE: Final = re.compile(
    r"(?:^[\s<>*\"'|({-]{0,20}|[:;]\s*['\"(]?|[('\"]|->\s*|\b(?:said|was|with|returned|response|error|reason|returned)\s+['\"(]?)"
    r"(?=[45]\d\d(?:[ -]\s*\S|:\s))",
    re.IGNORECASE,
)
_GOES_ON: Final = re.compile(r"\s*[45]\d\d(?:[ -]|$)")
_ENDS: Final = re.compile(
    r"\s*(?:>>>|<<<|-{3,}|giving up|i'm not going to try|no action is required|remote system\b|remote-mta\b)",
    re.IGNORECASE,
)
_HEARD: Final = re.compile(r"\s*<<<\s*")
_SAID: Final = re.compile(r"\s*>>>\s*(?:mail|rcpt|data|bdat|helo|ehlo)\b", re.IGNORECASE)

_RULE: Final = re.compile(
    r"^[ \t>*-]{0,80}(?:"
    r"(?:this is|below|included|enclosed|here)\b[^\n]{0,60}\b(?:copy|header)s?\b[^\n]{0,60}"
    r"|[^\n]{0,30}\b(?:original|unsent|returned|undelivered)\b[ -]?(?:mail|message)\b[^\n:]{0,40}"
    r"|message headers? follows?\W*|[^\n]{0,20}\bheaders? of the original message\b[^\n]{0,40}"
    r")[ \t>*:.-]{0,80}$",
    re.IGNORECASE | re.MULTILINE,
)
_HEADER: Final = re.compile(
    r"^(?:return-path|received|dkim-signature|x-[\w-]{1,40}|message-id|from):[^\n]*\n(?:[ \t][^\n]*\n){0,30}"
    r"(?:[A-Za-z][\w-]{1,50}:[^\n]*\n(?:[ \t][^\n]*\n){0,30}){2}",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Told:
    """What the words say of one recipient."""

    address: str | None
    """None if the words quote a reply and name nobody."""
    reply: Reply | None
    """None if they quote none; then `words` are all there is."""
    words: str
    """The lines about the recipient."""
    sender_refused: bool = False
    """Whether the reply was to MAIL, before the server knew the recipient."""


def split_returned(text: str) -> tuple[str, str]:
    """Cuts a text where the returned mail begins.

    Returns:
        The words before, and the rest; the rest is empty if the text holds no mail.
    """
    for found in _RULE.finditer(text):
        after = text[found.end() :]
        # A rule without a header below is a sentence that only sounds like one.
        if _HEADER.match(after.lstrip()) or _HEADER.search(after[:600]):
            return text[: found.start()], after
    header = _HEADER.search(text)
    if header is not None and text[: header.start()].strip():
        return text[: header.start()], text[header.start() :]
    return text, ""


@dataclass(slots=True)
class _Reader:
    """What was read so far, and which recipient the lines speak of."""

    told: dict[str | None, Told] = field(default_factory=dict)
    address: str | None = None
    words: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    heard: Told | None = None
    sender_refused: bool = False

    def name(self, address: str) -> None:
        """From here on, the lines are about this recipient."""
        if self.address is not None and self.address != address:
            self.close()
        self.address = address

    def close(self) -> None:
        """Keeps what was said of a recipient without a reply."""
        words = self.words or self.before[-_LINES_BEFORE:]  # some servers say why, and then which recipient
        if self.address is not None and words:
            self.keep(Told(self.address, None, " ".join(words)[:LONGEST]))
        self.words = []
        self.sender_refused = False

    def keep(self, told: Told) -> None:
        """Keeps the first reply of each recipient; words without a reply give way to one."""
        before = self.told.get(told.address)
        if before is None or (before.reply is None and told.reply is not None):
            self.told[told.address] = told


def read_prose(text: str) -> list[Told]:
    """Reads what a text for people says of recipients.

    Args:
        text: The text before the returned mail.

    Returns:
        A `Told` for each recipient that has a reply or words of its own, in the order of the text.
    """
    reader = _Reader()
    lines = [line[:_LONGEST_LINE] for line in text.splitlines()[:_MOST_LINES]]
    number = 0
    while number < len(lines) and len(reader.told) < _MOST_RECIPIENTS:
        number = _read_line(reader, lines, number)
    reader.close()
    named = [one for one in reader.told.values() if one.address is not None]
    replied = [one for one in named if one.reply is not None]
    unnamed = reader.told.get(None)
    if replied or (named and unnamed is None):
        return replied or named
    if unnamed is None:
        return []
    return [Told(one.address, unnamed.reply, unnamed.words, unnamed.sender_refused) for one in named] or [
        unnamed
    ]


def _read_line(reader: _Reader, lines: list[str], number: int) -> int:
    """Reads a line, with those that belong to its reply. Returns the number of the next."""
    line = lines[number]
    if not line.strip():
        return number + 1
    if _OF_SENDER.search(line):
        reader.sender_refused = True
    elif _OF_RECIPIENT.search(line) or _OF_BODY.search(line):
        reader.sender_refused = False
    alone = _ALONE.fullmatch(line)
    if alone is not None:
        reader.name(alone[1])
        reader.sender_refused = False
        return number + 1
    quote = _QUOTE.search(line)
    before = line[: quote.end()] if quote else line
    first = _FIRST.match(before)
    behind = None if _OF_SENDER.search(before) else _BEHIND.search(before)
    if first is not None:
        reader.name(first[1])
    elif behind is not None:
        reader.name(behind[1])
    if quote is None:
        if not _SAID.match(line):
            told = reader.words if first is not None or reader.address is not None else reader.before
            told.append(line.strip())
        return number + 1
    return _read_quote(reader, lines, number, quote.end())


def _read_quote(reader: _Reader, lines: list[str], number: int, start: int) -> int:
    line = lines[number]
    heard = _HEARD.match(line) is not None
    quoted = [line[start:]]
    number += 1
    while number < len(lines) and (more := _more(lines[number], quoted, heard=heard)) is not None:
        quoted.append(more)
        number += 1
    text = "\n".join(quoted)
    reply = read_reply(text)
    if reply is None:
        return number
    told = Told(reader.address, reply, text[:LONGEST], reader.sender_refused)
    if heard:
        reader.heard = told
        if reader.address is not None and not reader.sender_refused:
            reader.keep(told)
        return number
    named = _AN_ADDRESS.match(reply.text.lstrip("<"))
    if reader.heard is not None and named is not None:
        # The server that writes sums up what it heard from the other: the other's words say more.
        told = Told(named[0], reader.heard.reply, reader.heard.words, reader.heard.sender_refused)
    elif reader.address is None and named is not None and not reader.sender_refused:
        told = Told(named[0], reply, told.words)
    reader.keep(told)
    reader.words = []
    return number


def _more(line: str, quoted: list[str], *, heard: bool) -> str | None:
    """Returns the line if the reply that was begun goes on in it, else None."""
    code = quoted[0][:3]
    if heard and _HEARD.match(line):  # a transcript marks each line of a reply
        unmarked = _HEARD.sub("", line)
        return unmarked if unmarked[:3] == code else None
    if not line.strip() or _ENDS.match(line) or (_GOES_ON.match(line) and line.strip()[:3] != code):
        return None
    return None if _ALONE.fullmatch(line) and not quoted[-1].rstrip().endswith(":") else line


def told_status(told: Told) -> str | None:
    """Returns the enhanced status code that the words about a recipient hold, if they quote no reply."""
    return read_status(told.words)
