"""When a delivery is sent, and how far: the `[schedule]`, `[[waves]]` and `[limits]` of a delivery file."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Annotated, Final, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_WRITTEN: Final = re.compile(r"(\d{1,6})([mhd])")
_PER_CENT: Final = re.compile(r"(\d{1,3}(?:\.\d{1,4})?)%")
_UNITS: Final = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}
_LONGEST: Final = timedelta(days=90)
_MINUTE: Final = timedelta(minutes=1)
_MOST_PAGES: Final = 10_000
"""Full pages of a delivery at most: the confirming transaction creates them, and must be short."""
_YEARS: Final = range(2000, 2100)
"""Years that a time may be in: any other year is a typing mistake."""

_STRICT: Final = ConfigDict(extra="forbid", frozen=True, strict=True)


def _read(value: object, shortest: timedelta) -> timedelta:
    match = _WRITTEN.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('give a number with m, h or d for minutes, hours or days, such as "90m" or "3d"')
    duration = int(match[1]) * _UNITS[match[2]]
    if not shortest <= duration <= _LONGEST:
        raise ValueError(
            f"it must be at least {duration_text(shortest)} and at most {duration_text(_LONGEST)}"
        )
    return duration


def _duration(value: object) -> timedelta:
    return _read(value, _MINUTE)


def _delay(value: object) -> timedelta:
    return _read(value, timedelta())


def duration_text(duration: timedelta) -> str:
    """Returns a duration as delivery files write it: "90m", "2h", "3d". A part of a minute is left out."""
    unit = next((u for u, length in _UNITS.items() if duration and not duration % length), "m")
    return f"{duration // _UNITS[unit]}{unit}"


def _date_and_time(value: object) -> datetime:
    if not isinstance(value, datetime):
        raise ValueError("give a date and a time without quotes, such as 2026-12-01T09:00:00")  # noqa: TRY004
    if value.year not in _YEARS:
        raise ValueError(f"the year must be from {_YEARS[0]} to {_YEARS[-1]}")
    return value


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def known_zone(value: str) -> str:
    """Returns the name of a time zone if the IANA database knows it, or raises ValueError."""
    if value not in _zones():
        raise ValueError(f"“{value}” is not a time zone of the IANA database, such as Europe/Paris")
    return value


def _share(value: object) -> Fraction | None:
    if value == "rest":
        return None
    match = _PER_CENT.fullmatch(value) if isinstance(value, str) else None
    share = Fraction(match[1]) / 100 if match else 0
    if not 0 < share <= 1:
        raise ValueError('give a share such as "10%" or "0.5%", or "rest" for the last one')
    return Fraction(share)


Duration = Annotated[timedelta, BeforeValidator(_duration)]
"""Written as a number with m, h or d; from a minute to 90 days."""

Moment = Annotated[datetime, BeforeValidator(_date_and_time)]
"""A date and a time, with or without an offset from UTC."""


class Schedule(BaseModel):
    """When sending may start: the `[schedule]` table."""

    model_config = _STRICT

    contact_date: Moment | None = None
    """As written: with an offset from UTC, or local to `time_zone`; None starts it at the confirmation."""
    time_zone: Annotated[str, AfterValidator(known_zone)] | None = None
    """The zone's name in the IANA database; UTC if there is none."""
    local_time: bool = False
    """Whether the contact date is local to each recipient, in the zone of the column `time_zone`."""
    late: Literal["send", "skip"] = "send"
    """Whether a delivery that could not start in time is sent or skipped."""
    late_limit: Duration | None = None
    """How late a delivery may start before it is skipped."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.late == "skip" and self.late_limit is None:
            raise ValueError('late = "skip" needs late_limit, such as late_limit = "2h"')
        if self.late == "send" and self.late_limit is not None:
            raise ValueError('late_limit goes with late = "skip" only')
        if self.contact_date is None and (self.late == "skip" or self.local_time):
            raise ValueError('local_time and late = "skip" need a contact_date')
        if self.local_time and self.contact_date and self.contact_date.tzinfo is not None:
            raise ValueError(
                "local_time needs a contact_date without an offset from UTC: it is each one's own"
            )
        return self

    @property
    def instant(self) -> datetime | None:
        """The contact date in UTC (`instant_of` says how)."""
        return self.contact_date and instant_of(self.contact_date, self.zone or "UTC")

    @property
    def zone(self) -> str | None:
        """The name of the zone for the contact date; None if there is neither a zone nor a date."""
        return self.time_zone or ("UTC" if self.contact_date else None)


class WaveDefinition(BaseModel):
    """A share of the audience: one of `[[waves]]`."""

    model_config = _STRICT

    share: Annotated[Fraction | None, BeforeValidator(_share)]
    """The share of the whole audience; None for all that the earlier waves leave."""
    after: Annotated[timedelta, BeforeValidator(_delay)] = timedelta()
    """How long after the start the wave is due."""


class SendingLimits(BaseModel):
    """The limits of one delivery's sending: the `[limits]` table."""

    model_config = _STRICT

    messages_per_hour: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Messages of this delivery in an hour, with retries; None for no limit."""
    breaker_minimum: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """Recipients attempted before it may pause itself; 0 for never; None, here and below, for the setting."""
    hard_bounce_pct: Annotated[float, Field(ge=0, le=100)] | None = None
    """It pauses itself when more percent of the attempted are hard bounces; 0 for no limit."""
    error_pct: Annotated[float, Field(ge=0, le=100)] | None = None
    """It pauses itself when more percent of the attempted are errors; 0 for no limit."""
    refused_pct: Annotated[float, Field(ge=0, le=100)] | None = None
    """Likewise for refusals that blame the sender; 0 for no limit."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    """Attempts for one recipient; 1 for no retries; None for the setting."""


def check_waves(waves: tuple[WaveDefinition, ...], valid_for: timedelta) -> None:
    """Checks the waves together.

    Args:
        waves: The waves in the order of the file.
        valid_for: How long after the start the delivery may be sent.

    Raises:
        ValueError: Their shares do not add up to the whole, their times are not in order, or they end too
            late.
    """
    if not waves:
        return
    if any(later.after <= earlier.after for earlier, later in pairwise(waves)):
        raise ValueError("waves: each must come after the one before; give it a longer “after”")
    if waves[-1].after >= valid_for:
        raise ValueError(
            f"waves: the last is due {duration_text(waves[-1].after)} after the start, when the delivery is"
            f" no longer valid; make valid_for, now {duration_text(valid_for)}, longer"
        )
    if any(w.share is None for w in waves[:-1]):
        raise ValueError("waves: only the last share may be “rest”")
    total = sum((w.share for w in waves if w.share is not None), Fraction())
    rest = waves[-1].share is None
    if (rest and total >= 1) or (not rest and total != 1):
        advice = "leave out the last" if rest else "make them 100%, or the last “rest”"
        raise ValueError(f"waves: the shares come to {float(total * 100):g}%; {advice}")


def wave_ends(total: int, waves: tuple[WaveDefinition, ...]) -> list[int]:
    """Divides an audience into waves.

    Shares are rounded in favour of the first waves, so that a trial wave of a small audience is not empty.

    Args:
        total: How many recipients there are.
        waves: Waves that passed `check_waves`.

    Returns:
        For each wave, how many recipients are in it and in the earlier ones; the last number is `total`.
    """
    ends, dealt = [], Fraction()
    for wave in waves:
        dealt = Fraction(1) if wave.share is None else dealt + wave.share
        ends.append(-(-total * dealt.numerator // dealt.denominator))
    return ends


def page_size(recipients: int, messages_per_hour: int | None, usual: int) -> int:
    """Returns how many recipients a page has at most, so that no delivery has more than 10,000 full pages.

    With a limit it is three seconds' worth, at least one. A page is published at once, and up to two of them
    may wait for the senders, so this is what the limit is exact to: in any stretch of time, ten seconds'
    worth more than the limit allows for it, or four messages. Of a large audience with a low limit the pages
    are larger than three seconds' worth, and the limit is exact to three of them.

    Args:
        recipients: The audience. More than 10,000 usual pages of it make each page larger.
        messages_per_hour: The limit of the throughput, or None.
        usual: Recipients in a page of a delivery without a limit.
    """
    if messages_per_hour is not None:
        usual = max(1, min(messages_per_hour // 1_200, usual))
    return max(usual, -(-recipients // _MOST_PAGES))


def instant_of(moment: datetime, zone: str) -> datetime:
    """Returns a moment in UTC. A moment without an offset is local to the zone.

    A local time that the clocks skip in spring is moved later by the skipped time. For a local time that
    comes twice in autumn, the first is used (PEP 495, fold 0).

    Args:
        moment: From the year 2000 to 2099.
        zone: A name of the IANA database.
    """
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(zone), fold=0)
    return moment.astimezone(UTC)


def due_of(send_at: str, time_zone: str, default_zone: str) -> datetime | None:
    """Reads when a row is due, in UTC, rounded up to the minute.

    Args:
        send_at: ISO 8601, a date and a time, with an offset from UTC or local to the zone; empty for none.
        time_zone: A name of the IANA database; empty for the delivery's zone.
        default_zone: The delivery's zone.

    Returns:
        None if the row names no time.

    Raises:
        ValueError: One of them cannot be read; the message says why.
    """
    zone = known_zone(time_zone) if time_zone else default_zone
    if not send_at:
        return None
    try:
        moment = datetime.fromisoformat(send_at)
    except ValueError:
        moment = None
    if moment is None or not re.search(r"\d[T ]\d", send_at):
        raise ValueError(
            f"send_at: “{send_at}” is not a date and a time in ISO 8601, such as 2026-12-01T09:00"
        )
    return round_up(instant_of(_date_and_time(moment), zone))


def round_up(moment: datetime) -> datetime:
    """Returns the full minute at or after a moment, so that recipients due in one minute make one wave."""
    minute = moment.replace(second=0, microsecond=0)
    return minute if minute == moment else minute + _MINUTE
