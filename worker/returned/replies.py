"""Finds the server's reply (RFC 5321 section 4.2) in a diagnosis, or in a line of a text for people."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

LONGEST: Final = 2_000
"""Characters of a diagnosis that are read."""

_TYPE: Final = re.compile(r"\s*[A-Za-z][\w-]{0,30}\s*;\s*")
"""The diagnostic type (RFC 3464 section 2.3.6), mostly `smtp;`."""
_AT_START: Final = re.compile(r"[\s<'\"(]*([45]\d\d)(?![\w.])[ :-]?\s*")
_BEFORE_STATUS: Final = re.compile(
    r"(?<![\w.@])([45]\d\d)[ -]['\"(#]{0,2}(?=[245]\.\d{1,3}\.\d{1,3}(?![\d.]))"
)
_ANYWHERE: Final = re.compile(r"(?<![\w.@/:=-])([45]\d\d)[ -](?=\s*[\w<'\"\[(])")
_STATUS: Final = re.compile(r"(?<![\w.])([45]\.\d{1,3}\.\d{1,3})(?![\w.]*\d)")
_COMMAND: Final = re.compile(
    r"\s*(?:\[(?:RCPT_TO|MAIL_FROM|DATA|CONNECT|HELO|EHLO)\]?|\(in\s+reply\s+to\s[\w\s]{1,40}\bcommand\))\s*$"
)
"""Some servers write the command that was answered behind the reply."""


class Reply(NamedTuple):
    """A server's reply as somebody quotes it."""

    code: int
    text: str
    """The text without the code; lines are parted by line feeds."""


def read_reply(diagnosis: str) -> Reply | None:
    """Reads the reply that a diagnosis quotes, perhaps behind other words.

    Args:
        diagnosis: The value of `Diagnostic-Code`, with or without its type, or a line that quotes a reply.

    Returns:
        The reply; None if there is no basic code.
    """
    text = diagnosis[:LONGEST]
    typed = _TYPE.match(text)
    if typed:
        text = text[typed.end() :]
    found = _AT_START.match(text) or _BEFORE_STATUS.search(text) or _ANYWHERE.search(text)
    if found is None:
        return None
    return Reply(int(found[1]), _cleaned(found[1], text[found.end() :]))


def read_status(text: str) -> str | None:
    """Finds an enhanced status code (RFC 3463) of a failure anywhere in a text."""
    found = _STATUS.search(text[:LONGEST])
    return found[1] if found else None


def _cleaned(code: str, text: str) -> str:
    """Without the code at the beginning of each line, which some servers fold into one."""
    again = re.compile(
        rf"(?:^|\s+){code}[ -]\s*(?=(?:['\"(]?[245]\.\d{{1,3}}\.\d{{1,3}})(?![\d.]))"
        rf"|^[ \t]*{code}(?:[ -][ \t]*|$)",
        re.MULTILINE,
    )
    lines = again.sub("\n", text).splitlines()
    words = _COMMAND.sub("", "\n".join(line.strip(" \t'\"") for line in lines if line.strip(" \t'\"")))
    closes_more = words.endswith(")") and words.count(")") > words.count("(")
    return words[:-1] if closes_more else words
