"""A refusal: the rules forbid what was asked. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contracts.commands import Reason


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal: its reason, and a sentence for the person who asked."""

    reason: Reason
    message: str
