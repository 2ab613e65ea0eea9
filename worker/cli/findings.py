"""What `sendoff check` finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PartStatus(StrEnum):
    """The status of a part."""

    OK = "ok"
    """It fits this Sendoff."""
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
