"""Tells machines from persons in tracking events, by rules about user agents that have a version.

Only the event itself is read, so that the result does not depend on the order or the time of events. The time
between *sent* and an event would show more scanners, but *sent* may be recorded after it.
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
"""Results that are kept: most events share a few hundred user agents."""


class Sort(StrEnum):
    """The kind of a machine."""

    PREFETCH = "prefetch"
    """Loads images or links for a mailbox, before a person reads the message or without one."""
    SCANNER = "scanner"
    """Follows every link of a message, to find malware."""
    PROGRAM = "program"
    """A program that is neither a mail client nor a browser."""


class RulesInvalid(Exception):
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
        """Takes the version's name, and the rules in the order in which they are applied."""
        self.version = version
        self.rules = rules
        expressions = [(rule, re.compile("|".join(rule.patterns), re.IGNORECASE)) for rule in rules]

        @lru_cache(maxsize=_USER_AGENTS_KEPT)
        def judge(user_agent: str) -> Rule | None:
            return next((rule for rule, expression in expressions if expression.search(user_agent)), None)

        self._judge = judge

    def judge(self, user_agent: str | None) -> Rule | None:
        """Returns the first rule that matches a user agent; None for a person.

        An event without a user agent counts as a person's: some trackers do not pass it on.
        """
        return self._judge(user_agent) if user_agent else None


def read_rules(text: str) -> Machines:
    """Reads a file of rules, in TOML.

    Raises:
        RulesInvalid: It is not a file of rules.
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
