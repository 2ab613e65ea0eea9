"""The circuit breaker pauses a delivery with too many bounces or errors. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from contracts.events import Figures

if TYPE_CHECKING:
    from collections.abc import Sequence


_REFUSED = "refusals that blame the sender"


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When the breaker trips; 0 turns a limit off."""

    minimum: int
    """Recipients that must have been attempted before the breaker can trip; 0 turns the breaker off."""
    hard_bounce_pct: float
    """The allowed share of hard bounces, in percent of the attempted."""
    error_pct: float
    """The allowed share of errors, in percent of the attempted."""
    refused_pct: float
    """The allowed share of refusals that blame the sender, in percent of the attempted."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The number of recipients by their current outcome."""

    attempted: int
    """Sent, bounced or errors."""
    bounced_hard: int
    errors: int
    refused: int
    """Refused for a fault of the sender, and not tried again by themselves."""


@dataclass(frozen=True, slots=True)
class Tripped:
    """The breaker trips: a sentence for people, and the figures for programs."""

    reason: str
    figures: Figures
    by_sender: bool = False
    """Whether refusals that blame the sender tripped it: those who were refused can be tried again."""

    def at_domains(self, refused: Sequence[tuple[str, int]]) -> Tripped:
        """Names the domains that refuse us most, each with the number of recipients."""
        named = ", ".join(f"{domain} ({count})" for domain, count in refused)
        if not named:
            return self
        return replace(self, reason=f"{self.reason.removesuffix('.')}; most at {named}.")


def judge(tally: Tally, limits: BreakerLimits) -> Tripped | None:
    """Returns whether a share is above its limit. A share at the limit is allowed.

    Args:
        tally: The outcomes so far.
        limits: The delivery's limits.

    Returns:
        None if it does not trip.
    """
    if not limits.minimum or tally.attempted < limits.minimum:
        return None
    shares = (
        ("hard bounces", tally.bounced_hard, limits.hard_bounce_pct),
        ("errors", tally.errors, limits.error_pct),
        (_REFUSED, tally.refused, limits.refused_pct),
    )
    passed = {
        name: f"{name} {_pct(count, tally.attempted):g} % of {tally.attempted} attempted, limit {limit:g} %"
        for name, count, limit in shares
        if limit and 100 * count > limit * tally.attempted
    }
    if not passed:
        return None
    figures = Figures(
        attempted=tally.attempted,
        bounced_hard=tally.bounced_hard,
        errors=tally.errors,
        hard_bounce_pct=_pct(tally.bounced_hard, tally.attempted),
        error_pct=_pct(tally.errors, tally.attempted),
        hard_bounce_limit_pct=limits.hard_bounce_pct,
        error_limit_pct=limits.error_pct,
        refused=tally.refused,
        refused_pct=_pct(tally.refused, tally.attempted),
        refused_limit_pct=limits.refused_pct,
    )
    reason = f"The circuit breaker paused it: {'; '.join(passed.values())}."
    return Tripped(reason, figures, by_sender=_REFUSED in passed)


def _pct(count: int, of: int) -> float:
    return round(100 * count / of, 2)
