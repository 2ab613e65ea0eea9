"""When each row of a recipients file is due: at the start, at its own time, or at its own local time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from worker.domain.recipients_file import TRIMMED
from worker.domain.schedule import due_of, duration_text, instant_of, known_zone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from worker.domain.delivery_file import DeliveryFile
    from worker.domain.schedule import Schedule

_LONGEST: Final = 100
"""Characters of a time or a time zone that are read, and quoted in an error."""


class TimingInvalid(Exception):
    """The delivery file and the recipients file do not fit together; the message says why."""


@dataclass(frozen=True, slots=True)
class Timing:
    """When the rows of a file are due."""

    by_row: bool
    """Whether rows have their own times."""
    due: Callable[[Mapping[str, str]], datetime | None]
    """Returns when a row is due, by its columns, never before the contact date; None for the start.

    Raises ValueError if that cannot be read.
    """


def timing(definition: DeliveryFile, columns: tuple[str, ...]) -> Timing:
    """Returns when rows are due, by the delivery file and the names of the columns.

    Raises:
        TimingInvalid: They do not fit together.
    """
    schedule = definition.schedule
    if "send_at" in columns:
        if definition.waves or schedule.local_time:
            other = "[[waves]]" if definition.waves else "[schedule] local_time"
            raise TimingInvalid(f"the column “send_at” cannot be joined with {other}; leave out one of them")
        return Timing(by_row=True, due=_own_time(schedule))
    if schedule.local_time:
        if "time_zone" not in columns:
            raise TimingInvalid("[schedule] local_time needs a column “time_zone”; add it, or leave that out")
        return Timing(by_row=True, due=_own_clock(schedule))
    return Timing(by_row=False, due=lambda _: None)


def check_span(definition: DeliveryFile, first: datetime | None, last: datetime | None) -> None:
    """Checks that all recipients are due while the delivery is valid, as far as a preparation can know.

    Without a contact date the validity is counted from the confirmation, and the confirmation checks it.

    Args:
        definition: The delivery file.
        first: When the first row with its own time is due, if there is one.
        last: When the last such row is due.

    Raises:
        TimingInvalid: The last row is due too late.
    """
    start = first if definition.schedule.local_time else definition.schedule.instant
    if start is not None and last is not None and last >= start + definition.valid_for:
        raise TimingInvalid(
            f"somebody is due at {last:%Y-%m-%d %H:%M} UTC, when the delivery is no longer valid; make"
            f" valid_for, now {duration_text(definition.valid_for)}, longer, or change that time"
        )


def _own_time(schedule: Schedule) -> Callable[[Mapping[str, str]], datetime | None]:
    start, zone = schedule.instant, schedule.zone or "UTC"

    def due(row: Mapping[str, str]) -> datetime | None:
        moment = due_of(_text(row, "send_at"), _text(row, "time_zone"), zone)
        return moment if start is None else max(moment or start, start)

    return due


def _own_clock(schedule: Schedule) -> Callable[[Mapping[str, str]], datetime | None]:
    contact_date, zone = schedule.contact_date, schedule.zone or "UTC"

    @lru_cache(maxsize=1_024)
    def there(name: str) -> datetime | None:
        return contact_date and instant_of(contact_date, known_zone(name) if name else zone)

    return lambda row: there(_text(row, "time_zone"))


def _text(row: Mapping[str, str], column: str) -> str:
    return row.get(column, "").strip(TRIMMED)[:_LONGEST]
