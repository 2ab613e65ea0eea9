"""The facts of a delivery that the rules use. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from contracts.commands import Reason
from worker.domain.refusals import Refused
from worker.domain.schedule import duration_text

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from contracts.commands import Wave
    from contracts.states import State
    from worker.domain.approval import Approval


@dataclass(frozen=True, slots=True)
class Delivery:
    """The facts of a delivery that the rules use."""

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
    """How late it may start; None for no limit."""
    messages_per_hour: int | None = None
    last_due_at: datetime | None = None
    """When the last recipients with their own times are due; None if there are none."""
    purged_at: datetime | None = None
    """When retention removed its recipients; None if it did not."""
    first_approval: Approval | None = None
    """The first of two OKs, even if it has lapsed; None if none was given."""

    def too_late(self, now: datetime) -> str | None:
        """Returns why it may not start any more, or None if it may.

        Args:
            now: The time, with its time zone.
        """
        if self.contact_date is None or self.late_limit is None or now <= self.contact_date + self.late_limit:
            return None
        return (
            f"it was due at {shown(self.contact_date)} and may start {duration_text(self.late_limit)} late at"
            f" most, and it is {shown(now)} now"
        )


@dataclass(frozen=True, slots=True)
class Waves:
    """The waves of a delivery, as people see them."""

    count: int
    """The number of all waves."""
    shown: tuple[Wave, ...]
    """The first waves."""


def validity_end(delivery: Delivery, now: datetime) -> datetime:
    """Returns until when sending and retrying may go on: the contact date, or now, plus the validity."""
    if delivery.valid_until is not None:
        return delivery.valid_until
    return (delivery.contact_date or now) + delivery.valid_for


def unknown_delivery(delivery_id: int) -> Refused:
    """Refuses a command for a delivery that does not exist."""
    return Refused(Reason.DELIVERY_UNKNOWN, f"There is no delivery {delivery_id}.")


def left_by_retention(delivery_id: int, purged_at: datetime) -> str:
    """Returns the sentence for a delivery whose recipients retention removed."""
    return (
        f"The recipients and the log of delivery {delivery_id} left by retention at {shown(purged_at)};"
        " its KPIs are kept."
    )


def shown(moment: datetime) -> str:
    """Returns a moment as text for people: ISO 8601, to the second."""
    return moment.isoformat(timespec="seconds")


def words(state: State) -> str:
    """Returns a state as text for people."""
    return state.value.replace("_", " ")
