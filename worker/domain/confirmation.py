"""The rules of a confirm: whether this operator may start this delivery now. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts.commands import Confirm, Reason, Summary
from contracts.states import State
from worker.domain.deliveries import left_by_retention, shown, unknown_delivery, validity_end, words
from worker.domain.operators import Role, refuse_operator
from worker.domain.refusals import Refused
from worker.domain.states import CONFIRMED, Move, sources

if TYPE_CHECKING:
    from datetime import datetime

    from contracts.commands import SecondApproval
    from worker.domain.deliveries import Delivery, Waves
    from worker.domain.operators import Operator
    from worker.domain.preflight import Findings


def check_confirm(  # noqa: PLR0911 - one return for each rule, in their order
    command: Confirm, operator: Operator | None, delivery: Delivery | None, now: datetime
) -> Refused | None:
    """Returns why a confirm must be refused, or None if it may go on.

    Args:
        command: The confirm, definitive or not.
        operator: The directory's entry for `command.operator`, read in the transaction that moves the state.
        delivery: The delivery, read and locked in the same transaction.
        now: The time, with its time zone.
    """
    refused = refuse_operator(operator, command.operator, Role.START_DELIVERIES, "confirm a send")
    if refused is not None:
        return refused
    if delivery is None:
        return unknown_delivery(command.delivery_id)
    if delivery.purged_at is not None:
        return Refused(Reason.WRONG_STATE, left_by_retention(delivery.delivery_id, delivery.purged_at))
    if delivery.state not in sources(Move.CONFIRM):
        return _not_confirmable(delivery)
    if command.definitive and command.preparation != delivery.preparation:
        return Refused(
            Reason.STALE_PREPARATION,
            f"You confirm preparation {command.preparation}, and the delivery has since been prepared again"
            f" (preparation {delivery.preparation}). Look at the new summary, then confirm that.",
        )
    if delivery.to_deliver == 0:
        return Refused(
            Reason.NOTHING_TO_SEND,
            "There is nobody to send to: the preparation left no recipient. Prepare it with others.",
        )
    if validity_end(delivery, now) <= now:
        return Refused(
            Reason.VALIDITY_OVER,
            f"The delivery could be sent until {validity_end(delivery, now).isoformat()}. "
            "Prepare it again with a later contact date or a longer validity.",
        )
    if delivery.last_due_at is not None and validity_end(delivery, now) <= delivery.last_due_at:
        return Refused(
            Reason.VALIDITY_OVER,
            f"The last recipients are due at {shown(delivery.last_due_at)}, when the delivery, confirmed"
            " now, is no longer valid. Prepare it again with a longer validity.",
        )
    late = delivery.too_late(now)
    if late is not None:
        return Refused(
            Reason.VALIDITY_OVER,
            f"The delivery cannot start any more: {late}. Prepare it again with a later contact date.",
        )
    return None


def summary(
    delivery: Delivery,
    excluded: dict[str, int],
    waves: Waves,
    now: datetime,
    second_approval: SecondApproval | None = None,
    told: Findings = (),
) -> Summary:
    """Returns what a person must see before the definitive OK.

    Args:
        delivery: The delivery.
        excluded: Targets left out by the preparation, by cause.
        waves: The first waves, and the number of all.
        now: The time, with its time zone. The validity is counted from it if there is no contact date.
        second_approval: What is to be said of the two OKs that it needs; None if it needs one.
        told: What the preflight found.
    """
    return Summary(
        label=delivery.label,
        channel=delivery.channel,
        to_deliver=delivery.to_deliver,
        excluded=excluded,
        contact_date=delivery.contact_date,
        time_zone=delivery.time_zone,
        valid_until=validity_end(delivery, now),
        valid_for=delivery.valid_for,
        preparation=delivery.preparation,
        wave_count=waves.count,
        waves=waves.shown,
        late_limit=delivery.late_limit,
        messages_per_hour=delivery.messages_per_hour,
        second_approval=second_approval,
        findings=told,
    )


def _not_confirmable(delivery: Delivery) -> Refused:
    if delivery.state in CONFIRMED and delivery.confirmed_at is not None:
        when = delivery.confirmed_at.isoformat(timespec="seconds")
        return Refused(
            Reason.ALREADY_CONFIRMED,
            f"The delivery was confirmed at {when} already and is {words(delivery.state)}.",
        )
    if delivery.state is State.STOPPED:
        return Refused(Reason.WRONG_STATE, "The delivery was stopped before it was confirmed.")
    return Refused(
        Reason.NOT_READY,
        f"The delivery is not ready to be confirmed: it is {words(delivery.state)}. Prepare it first.",
    )
