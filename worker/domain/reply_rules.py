"""The rules by which a server's refusal is read, as they stand in `reply_rules.toml`. Pure.

They are asked from the top to the bottom, and the first that fits gives the reading.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from contracts.base import explain
from contracts.results import BounceReason, Fault

_URL: Final = re.compile(r"https?://\S+", re.IGNORECASE)
_ADDRESS: Final = re.compile(r"\S+@\S+")
"""Taken away before the search for words: a mailbox named spam@ says nothing about the refusal."""
_HOST: Final = re.compile(r"\b(?:(?:[a-z\d_-]+\.)+[a-z]{2,24}|(?:[A-Z\d_-]+\.)+[A-Z]{2,24})\b")
"""Likewise: a host named spam.example.org says as little. Not `found.Please`, where a blank is missing."""
_CODES: Final = re.compile(r"(?<![\w.])[245]\.\d{1,3}\.\d{1,3}(?![\w.])")
_CODE_OR_RANGE: Final = re.compile(r"(\d+)\.(?:(\*)|(\d+)(?:-\1\.(\d+)|-(\d+))?)")
_UNDECODED: Final = {0xDC00 + octet: octet for octet in range(0x80, 0x100)}
"""Octets that are not UTF-8 are read as Latin-1, which servers that still write such octets mostly mean."""
_LONGEST_DETAIL: Final = 999
"""The greatest detail of an enhanced code (RFC 3463 section 2)."""


HOST: Final = "@@"
"""Stands for the name of a host. No word holds it, since addresses are taken away before."""
_LETTERS: Final = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ı": "i", "ß": "ss", "æ": "ae", "œ": "oe"})
"""Letters that Unicode does not take apart."""


_REPLIES_KEPT: Final = 4_096
"""Readings that are kept: without its address a server's reply is mostly the same. A new one takes 0.8 ms."""


class RulesInvalid(Exception):
    """The table of rules cannot be used; the message says why."""


def plain(text: str) -> str:
    """Returns a text in lower case, in one line, without accents, so that `é`, `É` and `e` are the same.

    Only marks over Latin, Greek and Cyrillic letters go: a mark makes another kana of a kana.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    kept = []
    for character in unicodedata.normalize("NFKC", text.translate(_UNDECODED)):
        base = unicodedata.normalize("NFD", character)
        kept.append(base[0] if len(base) > 1 and base[0] < "\u1100" else character)
    return " ".join("".join(kept).lower().translate(_LETTERS).split())


class Reply(NamedTuple):
    """A refusal, as the rules look at it."""

    code: int
    """The basic code."""
    detail: str
    """Subject and detail of the enhanced code, such as `1.1`; `0.0` if there is none."""
    words: str
    """The words as `plain` makes them, without addresses, URLs and enhanced codes; `@@` for a host's name."""
    links: str
    """The URLs, and the names of hosts."""

    @classmethod
    def read(cls, code: int, detail: str, text: str) -> Reply:
        """Takes a reply apart.

        Args:
            code: The basic code.
            detail: Subject and detail of the enhanced code; `0.0` if there is none.
            text: The words beside it, of several lines perhaps.
        """
        words = _ADDRESS.sub(" ", _URL.sub(" ", text))
        links = " ".join(_URL.findall(text) + _HOST.findall(words))
        return cls(code, detail, plain(_CODES.sub(" ", _HOST.sub(HOST, words))), plain(links))


def _spread(code: str) -> set[str]:
    """Returns the codes that `1.1`, `7.501-7.508` or `7.*` stands for."""
    found = _CODE_OR_RANGE.fullmatch(code)
    if found is None:
        raise ValueError(f"{code!r} is no subject and detail, such as 1.1, 7.20-7.26 or 7.*")
    subject, all_of_them, first = found[1], found[2], int(found[3] or 0)
    last = _LONGEST_DETAIL if all_of_them else int(found[4] or found[5] or first)
    return {f"{subject}.{detail}" for detail in range(first, last + 1)}


class Rule(BaseModel):
    """One rule: its conditions, and the reading."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
    why: Annotated[str, Field(min_length=1)]
    reason: BounceReason
    fault: Fault | None = None
    """Who can mend it; None if the reply does not say."""
    hard: bool = False
    """Whether a permanent reply by this rule means that the address does not work."""
    words: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    codes: frozenset[str] = frozenset()
    basic: frozenset[int] = frozenset()
    permanent: bool = False
    """Whether only a 5yz reply fits."""

    @field_validator("words", "links")
    @classmethod
    def _are_expressions(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns

    @field_validator("codes", mode="before")
    @classmethod
    def _spread_codes(cls, codes: list[str]) -> frozenset[str]:
        return frozenset().union(*map(_spread, codes))

    @field_validator("reason", mode="before")
    @classmethod
    def _is_a_reason(cls, reason: str) -> BounceReason:
        if reason not in set(BounceReason):
            raise ValueError(f"{reason!r} is no reason of a bounce")
        return BounceReason(reason)

    @model_validator(mode="after")
    def _only_the_recipient_is_condemned(self) -> Rule:
        if self.hard and self.fault is not Fault.RECIPIENT:
            raise ValueError(f"{self.name} is hard, and the fault is not the recipient's")
        return self


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    again: frozenset[BounceReason]
    rule: Annotated[tuple[Rule, ...], Field(min_length=1)]


class ReplyRules:
    """The table, ready to be asked."""

    def __init__(self, again: frozenset[BounceReason], rules: tuple[Rule, ...]) -> None:
        """Takes the reasons for which a permanent reply is repeated, and the rules in their order."""
        self.again = again
        self.rules = rules
        self._compiled = [(rule, _either(rule.words), _either(rule.links)) for rule in rules]
        self._judge = lru_cache(maxsize=_REPLIES_KEPT)(self._first)

    def judge(self, reply: Reply) -> Rule:
        """Returns the first rule that fits."""
        return self._judge(reply)

    def _first(self, reply: Reply) -> Rule:
        for rule, words, links in self._compiled:
            if (
                (words is None or words.search(reply.words))
                and (links is None or links.search(reply.links))
                and (not rule.codes or reply.detail in rule.codes)
                and (not rule.basic or reply.code in rule.basic)
                and (not rule.permanent or reply.code // 100 == 5)  # noqa: PLR2004 - 5yz
            ):
                return rule
        raise AssertionError("the last rule fits every reply")


def _either(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(plain_pattern, patterns))) if patterns else None


def plain_pattern(pattern: str) -> str:
    """Returns a pattern as it is looked for in plain words: without accents, and escapes as they were."""
    return re.sub(
        r"\\?.", lambda found: found[0] if found[0][0] == "\\" else plain(found[0]) or found[0], pattern
    )


def read_rules(text: str) -> ReplyRules:
    """Reads a table of rules, in TOML.

    Raises:
        RulesInvalid: It is not a table of rules.
    """
    try:
        table = _Table.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RulesInvalid(f"It is no TOML: {error}.") from error
    except ValidationError as error:
        raise RulesInvalid(explain(error)) from error
    names = [rule.name for rule in table.rule]
    if len(set(names)) < len(names):
        raise RulesInvalid("Two rules have the same name.")
    last = table.rule[-1]
    if last.words or last.links or last.codes or last.basic or last.permanent:
        raise RulesInvalid(f"The last rule, {last.name}, does not fit every reply.")
    return ReplyRules(table.again, table.rule)


def own_rules() -> ReplyRules:
    """Returns the rules that come with Sendoff."""
    return read_rules(files("worker.domain").joinpath("reply_rules.toml").read_text("utf-8"))
