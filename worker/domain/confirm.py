"""The rules of a command: may this operator do this to this delivery now? Pure: rows in, a verdict out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from contracts.commands import Confirm, Reason, Summary
from contracts.states import State
from worker.domain.schedule import written
from worker.domain.states import CONFIRMED, Move, sources

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from contracts.commands import Wave


class Role(StrEnum):
    """What an operator may do."""

    PREPARE_DELIVERIES = "prepare_deliveries"
    """May prepare deliveries."""
    START_DELIVERIES = "start_deliveries"
    """May prepare, confirm, pause, resume and stop them."""
    ADMINISTRATION = "administration"
    """May manage operators; starts nothing by itself."""


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator as the directory knows it."""

    name: str
    active: bool
    roles: frozenset[Role]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the rules need to know of a delivery."""

    delivery_id: int
    label: str
    channel: str
    state: State
    preparation: int
    to_deliver: int
    contact_date: datetime | None
    time_zone: str | None
    valid_for: timedelta
    valid_until: datetime | None
    confirmed_at: datetime | None
    late_limit: timedelta | None = None
    """How late it may start; None for however late."""
    messages_per_hour: int | None = None
    last_due_at: datetime | None = None
    """When the last recipients with a time of their own are due; None where there are none."""
    purged_at: datetime | None = None
    """When its recipients left by retention; None where they are there."""

    def too_late(self, now: datetime) -> str | None:
        """Says why it may not start any more, or None where it may.

        Args:
            now: The time, aware.
        """
        if self.contact_date is None or self.late_limit is None or now <= self.contact_date + self.late_limit:
            return None
        return (
            f"it was due at {_shown(self.contact_date)} and may start {written(self.late_limit)} late at"
            f" most, and it is {_shown(now)} now"
        )


@dataclass(frozen=True, slots=True)
class Waves:
    """How a delivery is dealt out over time, as far as a person is shown it."""

    count: int
    """How many waves there are."""
    shown: tuple[Wave, ...]
    """The first of them."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The rules forbid it: why, and a sentence for the person who asked."""

    reason: Reason
    message: str


def authorise(operator: Operator | None, name: str, action: str) -> Refused | None:
    """Refuses an operator who is unknown, inactive or without the *Start deliveries* role.

    Args:
        operator: The directory's entry, or None.
        name: The name that the command gave.
        action: What is asked, to end the sentence: "confirm a send".
    """
    if operator is None or not operator.active:
        why = "is not known" if operator is None else "has been deactivated"
        return Refused(Reason.OPERATOR_UNKNOWN, f"The operator “{name}” {why}.")
    if Role.START_DELIVERIES not in operator.roles:
        return Refused(
            Reason.ROLE_MISSING,
            f"Only operators with the Start deliveries role can {action}: “{name}” lacks the role"
            f" {Role.START_DELIVERIES.value}.",
        )
    return None


def check_confirm(  # noqa: PLR0911 - one return for each rule, in their order
    command: Confirm, operator: Operator | None, delivery: Delivery | None, now: datetime
) -> Refused | None:
    """Says why a confirm must be refused, or None where it may go on.

    Args:
        command: The confirm, definitive or not.
        operator: The directory's entry for `command.operator`, read in the transaction that moves the state.
        delivery: The delivery, read and locked in the same transaction.
        now: The time, aware.
    """
    refused = authorise(operator, command.operator, "confirm a send")
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
            f"The last recipients are due at {_shown(delivery.last_due_at)}, when the delivery, confirmed"
            " now, is no longer valid. Prepare it again with a longer validity.",
        )
    late = delivery.too_late(now)
    if late is not None:
        return Refused(
            Reason.VALIDITY_OVER,
            f"The delivery cannot start any more: {late}. Prepare it again with a later contact date.",
        )
    return None


def unknown_delivery(delivery_id: int) -> Refused:
    """Refuses a command for a delivery that does not exist."""
    return Refused(Reason.DELIVERY_UNKNOWN, f"There is no delivery {delivery_id}.")


def left_by_retention(delivery_id: int, purged_at: datetime) -> str:
    """Says that nothing can be done with a delivery any more, nor its log be read."""
    return (
        f"The recipients and the log of delivery {delivery_id} left by retention at {_shown(purged_at)};"
        " its KPIs are kept."
    )


def validity_end(delivery: Delivery, now: datetime) -> datetime:
    """Returns until when sending and retrying may go on: the contact date, or now, plus the validity."""
    if delivery.valid_until is not None:
        return delivery.valid_until
    return (delivery.contact_date or now) + delivery.valid_for


def summary(delivery: Delivery, excluded: dict[str, int], waves: Waves, now: datetime) -> Summary:
    """Returns what a person must see before the definitive OK.

    Args:
        delivery: The delivery.
        excluded: Targets left out by the preparation, by cause.
        waves: How it is dealt out over time.
        now: The time, aware; the validity is counted from it where there is no contact date.
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


def _shown(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def words(state: State) -> str:
    """Returns a state as a person says it."""
    return state.value.replace("_", " ")
