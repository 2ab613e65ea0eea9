"""The circuit breaker pauses a delivery with too many bounces or errors. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from contracts.events import Figures

if TYPE_CHECKING:
    from collections.abc import Sequence


_REFUSED: Final = "refusals that blame the sender"
SMALLEST: Final = 10
"""Recipients of the smallest delivery that pauses at its end."""
SMALL_PCT: Final = 50.0
"""The allowed share of such refusals, in percent, at the end of a delivery with fewer than the minimum."""
_DOMAINS_NAMED: Final = 3
"""So many of the domains that refuse us are named."""


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
    domain_refused_pct: float = 0
    """The same at one domain, where the minimum was attempted."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The number of recipients by their current outcome."""

    attempted: int
    """Sent, bounced or errors."""
    bounced_hard: int
    errors: int
    refused: int
    """Refused for a fault of the sender, and not tried again by themselves."""


class Refusing(NamedTuple):
    """A domain that refuses us."""

    domain: str
    attempted: int
    """Its recipients that are sent, bounced or errors."""
    refused: int
    """Those of them who were refused for a fault of the sender."""


@dataclass(frozen=True, slots=True)
class Tripped:
    """The breaker trips: a sentence for people, and the figures for programs."""

    reason: str
    figures: Figures
    by_sender: bool = False
    """Whether refusals that blame the sender tripped it: those who were refused can be tried again."""

    def at_domains(self, refusing: Sequence[Refusing]) -> Tripped:
        """Names the domains that refuse us most, each with the number of recipients."""
        named = ", ".join(f"{one.domain} ({one.refused})" for one in refusing[:_DOMAINS_NAMED])
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
        name: _share(name, count, tally.attempted, "", limit)
        for name, count, limit in shares
        if limit and 100 * count > limit * tally.attempted
    }
    if not passed:
        return None
    return _tripped(list(passed.values()), tally, limits, by_sender=_REFUSED in passed)


def judge_end(tally: Tally, limits: BreakerLimits) -> Tripped | None:
    """Returns whether a delivery in which nobody is open must pause, so that it does not finish.

    Only refusals that blame the sender count: who was refused can still be tried. Of fewer than the minimum
    more than half must be refused: nothing is lost by the wait for their outcomes, and one or two say little.

    Args:
        tally: The outcomes.
        limits: The delivery's limits.

    Returns:
        None if it may finish.
    """
    small = limits.minimum and limits.refused_pct and SMALLEST <= tally.attempted < limits.minimum
    share = max(limits.refused_pct, SMALL_PCT)
    verdict = judge(tally, replace(limits, minimum=SMALLEST, refused_pct=share) if small else limits)
    return verdict if verdict is not None and verdict.by_sender else None


def judge_domains(tally: Tally, limits: BreakerLimits, refusing: Sequence[Refusing]) -> Tripped | None:
    """Returns whether a domain refuses the sender too often. A share at the limit is allowed.

    Args:
        tally: The outcomes so far.
        limits: The delivery's limits.
        refusing: The domains that refuse most.

    Returns:
        None if it does not trip.
    """
    limit = limits.domain_refused_pct
    passed = [
        _share(_REFUSED, one.refused, one.attempted, f" at {one.domain}", limit)
        for one in refusing
        if limits.minimum and one.attempted >= limits.minimum and limit
        if 100 * one.refused > limit * one.attempted
    ]
    return _tripped(passed[:_DOMAINS_NAMED], tally, limits, by_sender=True) if passed else None


def _share(name: str, count: int, attempted: int, where: str, limit: float) -> str:
    return f"{name} {_pct(count, attempted):g} % of {attempted} attempted{where}, limit {limit:g} %"


def _tripped(shares: list[str], tally: Tally, limits: BreakerLimits, *, by_sender: bool) -> Tripped:
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
    return Tripped(f"The circuit breaker paused it: {'; '.join(shares)}.", figures, by_sender=by_sender)


def _pct(count: int, of: int) -> float:
    return round(100 * count / of, 2)
