"""The rules for settling unknown outcomes: what they may become, and when. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from contracts.commands import Reason
from worker.domain.deliveries import left_by_retention, unknown_delivery, words
from worker.domain.operators import Role, refuse_operator
from worker.domain.refusals import Refused
from worker.domain.states import UNDER_WAY, Move, sources

if TYPE_CHECKING:
    from datetime import datetime

    from worker.domain.deliveries import Delivery
    from worker.domain.operators import Operator

REASON: Final = "settled_by_operator"
"""The reason of an outcome that an operator settled."""


class Settlement(StrEnum):
    """What an unknown outcome becomes."""

    RESEND = "resend"
    """The message was not sent, or may be sent twice: one more attempt, even above the limit."""
    SENT = "sent"
    """The message was sent."""
    ERROR = "error"
    """The message was not sent, and must not be sent."""


def check_settlement(  # noqa: PLR0911 - one return for each rule, in their order
    how: Settlement,
    operator: Operator | None,
    name: str,
    delivery: Delivery | None,
    delivery_id: int,
    now: datetime,
) -> Refused | None:
    """Returns why unknown outcomes must not be settled so, or None if they may.

    Args:
        how: What they must become.
        operator: The directory's entry, or None.
        name: The name that was given.
        delivery: The delivery, read and locked in the transaction that settles them; None for none.
        delivery_id: The number that was given.
        now: The time, with its time zone.
    """
    refused = refuse_operator(operator, name, Role.START_DELIVERIES, "settle unknown outcomes")
    if refused is not None:
        return refused
    if delivery is None:
        return unknown_delivery(delivery_id)
    if delivery.purged_at is not None:
        return Refused(Reason.WRONG_STATE, left_by_retention(delivery_id, delivery.purged_at))
    if how is not Settlement.RESEND:
        return None
    if delivery.state not in (*UNDER_WAY, *sources(Move.RESEND)):
        return Refused(
            Reason.WRONG_STATE, f"Nothing can be sent again: the delivery is {words(delivery.state)}."
        )
    if delivery.valid_until is not None and delivery.valid_until <= now:
        return Refused(
            Reason.VALIDITY_OVER,
            f"Nothing can be sent again: the delivery could be sent until {delivery.valid_until.isoformat()}."
            " Settle the outcomes as sent or error.",
        )
    return None
