"""Who is behind a tracking event, a person or a machine: rules about user agents, data with a version.

Only what the event itself says is looked at, so that the verdict hangs neither on the order of the events nor
on when they come. How soon an event follows *sent* would tell more scanners, but *sent* may come after it.
"""

from __future__ import annotations

import re
import tomllib
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from contracts.base import explain

_USER_AGENTS_KEPT: Final = 4_096
"""Verdicts that are remembered: most events share a few hundred user agents."""


class Sort(StrEnum):
    """What a machine does."""

    PREFETCH = "prefetch"
    """Loads images or looks at links on behalf of a mailbox, before or without a person."""
    SCANNER = "scanner"
    """Follows every link of a message, looking for harm."""
    PROGRAM = "program"
    """Is no mail client and no browser."""


class RulesInvalid(Exception):  # noqa: N818 - the name is the sentence
    """A file of rules cannot be used; the message says why."""


class Rule(BaseModel):
    """Machines of one kind, and how they are recognised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
    sort: Sort
    why: Annotated[str, Field(min_length=1)]
    patterns: Annotated[tuple[str, ...], Field(min_length=1)]

    @field_validator("patterns")
    @classmethod
    def _are_expressions(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[str, Field(min_length=1, max_length=40)]
    rule: tuple[Rule, ...]


class Machines:
    """A version of the rules."""

    def __init__(self, version: str, rules: tuple[Rule, ...]) -> None:
        """Takes the version's name, and the rules in the order in which they are asked."""
        self.version = version
        self.rules = rules
        expressions = [(rule, re.compile("|".join(rule.patterns), re.IGNORECASE)) for rule in rules]

        @lru_cache(maxsize=_USER_AGENTS_KEPT)
        def judge(user_agent: str) -> Rule | None:
            return next((rule for rule, expression in expressions if expression.search(user_agent)), None)

        self._judge = judge

    def judge(self, user_agent: str | None) -> Rule | None:
        """Returns the first rule that a user agent falls under; None for a person.

        Who says nothing of themselves counts as a person: some trackers pass no user agent on.
        """
        return self._judge(user_agent) if user_agent else None


def read_rules(text: str) -> Machines:
    """Reads a file of rules, in TOML.

    Raises:
        RulesInvalid: It is none.
    """
    try:
        read = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RulesInvalid(f"It is no TOML: {error}.") from error
    except ValidationError as error:
        raise RulesInvalid(explain(error)) from error
    names = [rule.name for rule in read.rule]
    if len(set(names)) < len(names):
        raise RulesInvalid("Two rules have the same name.")
    return Machines(read.version, read.rule)


def own_rules() -> Machines:
    """Returns the rules that come with Sendoff."""
    return read_rules(files("worker.domain").joinpath("machine_rules.toml").read_text("utf-8"))
