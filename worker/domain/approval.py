"""Two approvals: a delivery to many recipients starts only after two operators gave their OK. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from contracts.commands import Reason, SecondApproval
from worker.domain.authority import lost_right
from worker.domain.deliveries import shown
from worker.domain.refusals import Refused

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from worker.domain.deliveries import Delivery
    from worker.domain.operators import Operator


@dataclass(frozen=True, slots=True)
class Approval:
    """The first of two OKs, as it was recorded."""

    operator: str
    """Who gave it."""
    by_token: bool
    """Whether a token gave the roles then."""
    preparation: int
    """The preparation that it was given for."""
    at: datetime
    """When it was given."""
    until: datetime
    """When it lapses."""


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """Which deliveries need a second OK, and how long the first counts."""

    above: int
    """A delivery to more recipients needs two; 0 for none."""
    within: timedelta
    """How long the first counts."""

    def needs_second(self, to_deliver: int) -> bool:
        """Whether a delivery to so many recipients needs two OKs."""
        return 0 < self.above < to_deliver


def lapsed(first: Approval, listed: Operator | None, preparation: int, now: datetime) -> str | None:
    """Returns why a first OK does not count any more, as the end of a sentence, or None if it counts.

    Args:
        first: The first OK.
        listed: The directory's entry for who gave it, read in the transaction that moves the state.
        preparation: The delivery's preparation.
        now: The database's time.
    """
    if first.preparation != preparation:
        return f"it was given for preparation {first.preparation}"
    if first.until <= now:
        return f"it was given at {shown(first.at)} and counted until {shown(first.until)}"
    why = lost_right(listed, by_token=first.by_token)
    return why and f"“{first.operator}” {why}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What a definitive OK comes to."""

    first: Approval | None
    """The first of two OKs as it is to be recorded; None for none."""
    refused: Refused | None = None
    """Why the delivery is not started; None if it is."""


def decide(
    delivery: Delivery, listed: Operator | None, given: Approval, rule: ApprovalRule, now: datetime
) -> Decision:
    """Decides whether an OK that breaks no other rule starts the delivery.

    Args:
        delivery: The delivery, with the first OK of another time, if there was one.
        listed: The directory's entry for who gave that, as in `lapsed`.
        given: This OK, as it is recorded if it is the first.
        rule: Whether the delivery needs two.
        now: The database's time.
    """
    if not rule.needs_second(delivery.to_deliver):
        return Decision(None)
    first = delivery.first_approval
    why = first and lapsed(first, listed, delivery.preparation, now)
    if first is None or why is not None:
        before = f"The OK of “{first.operator}” does not count any more: {why}. " if first else ""
        return Decision(given, Refused(Reason.AWAITING_APPROVAL, before + _recorded(given, rule)))
    if first.operator == given.operator:
        return Decision(first, Refused(Reason.AWAITING_APPROVAL, _same_operator(first)))
    return Decision(first)


def _recorded(first: Approval, rule: ApprovalRule) -> str:
    return (
        f"Your OK is recorded, and nothing is sent yet: a delivery to more than {rule.above} recipients"
        " needs the OK of another operator with the Start deliveries role, for the same preparation, until"
        f" {shown(first.until)}."
    )


def _same_operator(first: Approval) -> str:
    return (
        f"You gave the first OK at {shown(first.at)}, and nothing is sent yet: the second must come from"
        f" another operator with the Start deliveries role, until {shown(first.until)}."
    )


def shown_approval(first: Approval | None, rule: ApprovalRule) -> SecondApproval:
    """Returns what the summary says of the two OKs; `first` is None if the next OK will be the first."""
    if first is None:
        return SecondApproval(above=rule.above)
    return SecondApproval(
        above=rule.above, first_by=first.operator, first_at=first.at, first_until=first.until
    )


def ask(first: Approval | None, operator: str) -> str:
    """Returns what the answer to the button asks for, where two OKs are needed.

    Args:
        first: The first OK, if it was given and counts.
        operator: Who pressed the button.
    """
    if first is None:
        return "Confirm to send it; another operator must confirm it too."
    if first.operator == operator:
        return f"You gave the first OK at {shown(first.at)}; another operator must confirm it too."
    return f"“{first.operator}” gave the first OK at {shown(first.at)}. Confirm to send it."
