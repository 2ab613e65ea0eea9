"""An audience out of the outcomes of an earlier delivery. Pure.

Nobody comes along who bounced hard, opted out, complained or was erased, whatever is asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from contracts.states import State
from worker.domain.deliveries import left_by_retention, words
from worker.domain.links import web_address

if TYPE_CHECKING:
    from datetime import datetime

_LONGEST_URL: Final = 8_192
_EXPRESSION: Final = re.compile(r"\{\{.*?\}\}", re.DOTALL)
_ANYTHING: Final = "zz7anything7zz"
"""Stands for an expression while the rest of a link is written as a redirect writes it."""
_LIKE: Final = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})
_OVER: Final = (State.FINISHED, State.STOPPED, State.FAILED)


class Who(StrEnum):
    """Which recipients of the earlier delivery."""

    FAILED = "failed"
    """Those with an error or a soft bounce."""
    SOFT = "soft"
    """Those with a soft bounce."""
    UNKNOWN = "unknown"
    """Those of whose message nobody knows whether it went out."""
    NOT_OPENED = "not-opened"
    """Those who got it and did not open it."""
    NOT_CLICKED = "not-clicked"
    """Those who got it and followed no link."""
    CLICKED = "clicked"
    """Those who followed a certain link."""


class CriterionInvalid(ValueError):
    """The text names no criterion; the message says which there are."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """Who of an earlier delivery is written to."""

    who: Who
    url: str | None = None
    """The link, for `clicked`, as the author wrote it: an expression of a template stands for anything."""
    persons: bool = False
    """Whether opens and clicks of machines do not count."""

    @property
    def urls(self) -> tuple[str, ...]:
        """The link as clicks name it: as given, and as our tracker redirects to it."""
        names = (self.url, web_address(self.url)) if self.url else ()
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @property
    def pattern(self) -> str | None:
        """The link as a pattern of SQL's LIKE, if it has expressions."""
        if self.url is None or _EXPRESSION.search(self.url) is None:
            return None
        link = _EXPRESSION.sub(_ANYTHING, self.url)
        return (web_address(link) or link).translate(_LIKE).replace(_ANYTHING, "%")

    def __str__(self) -> str:
        """Returns it as the delivery names it."""
        text = f"{self.who}={self.url}" if self.url else str(self.who)
        return f"{text}, persons" if self.persons else text


def read_criterion(text: str, *, persons: bool = False) -> Criterion:
    """Reads a criterion: the name of a `Who`, or `clicked=URL`.

    Raises:
        CriterionInvalid: It is none.
    """
    name, equals, url = text.partition("=")
    if name == Who.CLICKED and equals and 0 < len(url) <= _LONGEST_URL:
        return Criterion(Who.CLICKED, url, persons)
    if name in set(Who) - {Who.CLICKED} and not equals:
        return Criterion(Who(name), None, persons)
    names = ", ".join(who for who in Who if who is not Who.CLICKED)
    raise CriterionInvalid(f"“{text}” is none of {names} and clicked=URL")


def refuse_source(delivery_id: int, state: State, purged_at: datetime | None) -> str | None:
    """Refuses a delivery whose outcomes are gone, or are not yet what they will be."""
    if purged_at is not None:
        return left_by_retention(delivery_id, purged_at)
    if state in _OVER:
        return None
    return f"The delivery {delivery_id} is {words(state)}: its outcomes are known when it is over."
