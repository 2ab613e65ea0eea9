"""What a gateway's answer means: the rules of `answers.toml`, and how long it asks us to wait."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from contracts.results import BounceKind, BounceReason, Fault
from worker.domain.verdicts import Accepted, Bounced

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_WAIT: Final = 3_600.0
"""The most seconds of a Retry-After that are heeded. After that the gateway is asked again."""
_LONGEST_REPLY: Final = 1_000
"""Characters of an answer's body that are kept."""
_LONGEST_ID: Final = 255
_STATUSES: Final = range(100, 1000)
Outcome = Literal["sent", "wait", "again", "refused"]


class Answer(NamedTuple):
    """An answer, as far as it is read."""

    status: int
    phrase: str
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes
    """Its beginning."""

    @property
    def reply(self) -> str:
        """Status and words, in one line."""
        text = self.body.decode("utf-8", "replace")[:_LONGEST_REPLY]
        words = " ".join(f"{self.status} {self.phrase}".split())
        return f"{words}: {' '.join(text.split())}" if text.strip() else words

    @property
    def provider_id(self) -> str | None:
        """The gateway's own identifier: `id` of an answer that is a JSON object."""
        try:
            read = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        found = read.get("id") if isinstance(read, dict) else None
        if not isinstance(found, str | int) or isinstance(found, bool):
            return None
        # JSON can carry half a character (a lone surrogate), which no result may hold.
        return str(found)[:_LONGEST_ID].encode("utf-8", "replace").decode() or None

    def wait(self, now: datetime) -> float:
        """Returns for how many seconds the gateway wants nothing (RFC 9110 section 10.2.3), within bounds.

        A date is compared with the answer's own `Date`, where it has one: our clocks may differ.
        """
        text = self.headers.get("retry-after", "").strip()
        if text.isascii() and text.isdigit():
            return min(float(text[:9]), LONGEST_WAIT)
        until = _moment(text)
        if until is None:
            return 0.0
        since = _moment(self.headers.get("date", "")) or now
        return min(max((until - since).total_seconds(), 0.0), LONGEST_WAIT)


def _moment(text: str) -> datetime | None:
    try:
        read = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def _span(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


class Rule(BaseModel):
    """What some statuses mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
    why: Annotated[str, Field(min_length=1)]
    statuses: Annotated[tuple[Annotated[str, Field(pattern=r"^\d{3}(-\d{3})?$")], ...], Field(min_length=1)]
    outcome: Outcome
    reason: BounceReason = BounceReason.NOT_DEFINED
    code: Annotated[str, Field(pattern=r"^[45]\.\d\.\d$")] | None = None
    """The enhanced status code (RFC 3463): it says whether the message may be tried again."""
    fault: Fault | None = None
    hard: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        first = {"sent": None, "wait": "4", "again": "4", "refused": "5"}[self.outcome]
        if (self.code or "")[:1] != (first or ""):
            raise ValueError(f"{self.name}: the code does not fit “{self.outcome}”")
        if self.hard and (self.outcome != "refused" or self.fault is not Fault.RECIPIENT):
            raise ValueError(f"{self.name} is hard, and it does not blame the recipient for good")
        return self

    def verdict(self, answer: Answer) -> Accepted | Bounced:
        """Returns what an answer by this rule means for its message."""
        if self.code is None:
            return Accepted(answer.reply, answer.provider_id)
        kind = BounceKind.HARD if self.hard else BounceKind.SOFT
        return Bounced(kind, self.reason, self.code, answer.reply, self.fault)


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: tuple[Rule, ...]


@cache
def rules() -> tuple[Rule, ...]:
    """Returns the rules in their order."""
    text = files("worker.channels.webhook").joinpath("answers.toml").read_text("utf-8")
    return _Table.model_validate(tomllib.loads(text)).rule


@cache
def _by_status() -> Mapping[int, Rule]:
    found: dict[int, Rule] = {}
    for rule in rules():
        for span in map(_span, rule.statuses):
            for status in span:
                found.setdefault(status, rule)
    return found


def rule_of(status: int) -> Rule:
    """Returns the rule for a status."""
    known = _by_status()
    return known[status] if status in known else known[_STATUSES[-1]]
