"""What `sendoff check` finds: a sentence for each part."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class PartStatus(StrEnum):
    """The status of a part."""

    OK = "ok"
    """It fits this Sendoff."""
    WARNING = "warning"
    """It works, and somebody should look at it."""
    WRONG = "wrong"
    """It is there, but it is not as it must be."""
    UNREACHABLE = "unreachable"
    """It cannot be reached, or it refuses our login."""
    SKIPPED = "skipped"
    """It could not be checked because of another part."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of checking one part, in a sentence."""

    part: str
    standing: PartStatus
    message: str


def skipped(parts: Iterable[str], because: str) -> list[Finding]:
    """Returns the findings for parts that could not be checked."""
    return [Finding(part, PartStatus.SKIPPED, because) for part in parts]


def ok(part: str, message: str) -> Finding:
    """Returns a finding that is well."""
    return Finding(part, PartStatus.OK, message)


def warning(part: str, message: str) -> Finding:
    """Returns a finding that somebody should look at."""
    return Finding(part, PartStatus.WARNING, message)


def wrong(part: str, message: str) -> Finding:
    """Returns a finding that must be corrected."""
    return Finding(part, PartStatus.WRONG, message)


def unreachable(part: str, message: str) -> Finding:
    """Returns the finding for what is out of reach."""
    return Finding(part, PartStatus.UNREACHABLE, message)
