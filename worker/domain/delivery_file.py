"""The file that describes a delivery: its label, channel, schedule, validity and content, in TOML."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from worker.domain.content import EmailContent

_DURATION: Final = re.compile(r"(\d{1,6})([mhd])")
_UNITS: Final = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_SHORTEST: Final = timedelta(minutes=1)
_LONGEST: Final = timedelta(days=90)
_YEARS: Final = range(2000, 2100)
"""Years that a contact date may be in: what lies outside is a slip of the keyboard."""


class DeliveryFileInvalid(Exception):  # noqa: N818 - the name is the sentence
    """The file does not describe a delivery; the message names the key and what is wrong with it."""


def _duration(value: object) -> timedelta:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('give a number with m, h or d for minutes, hours or days, such as "90m" or "3d"')
    duration = int(match[1]) * _UNITS[match[2]]
    if not _SHORTEST <= duration <= _LONGEST:
        raise ValueError(f"it must be at least 1m and at most {_LONGEST.days}d")
    return duration


def _date_and_time(value: object) -> datetime:
    if not isinstance(value, datetime):
        raise ValueError("give a date and a time without quotes, such as 2026-12-01T09:00:00")  # noqa: TRY004
    if value.year not in _YEARS:
        raise ValueError(f"the year must be from {_YEARS[0]} to {_YEARS[-1]}")
    return value


def _known_zone(value: str) -> str:
    if value not in available_timezones():
        raise ValueError(f"“{value}” is not a time zone of the IANA database, such as Europe/Paris")
    return value


def _printable(value: str) -> str:
    if not value.isprintable() or not value.strip():
        raise ValueError("it must be one line that is not blank")
    return value


class Schedule(BaseModel):
    """When sending may start: the `[schedule]` table."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    contact_date: Annotated[datetime, BeforeValidator(_date_and_time)] | None = None
    """As it is written: with an offset from UTC, or local to `time_zone`; none means as soon as confirmed."""
    time_zone: Annotated[str, AfterValidator(_known_zone)] | None = None
    """The zone's name in the IANA database; UTC if there is none."""

    @property
    def instant(self) -> datetime | None:
        """The contact date in UTC.

        A local time that the clocks skip in spring is taken as much later as they are put forward; of one
        that comes twice in autumn, the first is meant (PEP 495, fold 0).
        """
        date = self.contact_date
        if date is not None and date.tzinfo is None:
            date = date.replace(tzinfo=ZoneInfo(self.zone or "UTC"))
        return date and date.astimezone(UTC)

    @property
    def zone(self) -> str | None:
        """The zone's name, to show the contact date in; None where there is neither a zone nor a date."""
        return self.time_zone or ("UTC" if self.contact_date else None)


class DeliveryFile(BaseModel):
    """A delivery as its file describes it. An unknown key is refused, as it is a misspelt one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    label: Annotated[str, Field(max_length=200), AfterValidator(_printable)]
    """What people call the delivery."""
    channel: str
    """One of the channels of this installation."""
    valid_for: Annotated[timedelta, BeforeValidator(_duration)] = timedelta(days=3)
    """For how long after the contact date, or else the confirmation, sending and retrying may go on."""
    schedule: Schedule = Schedule()
    """When sending may start."""
    email: EmailContent | None = None
    """The content, which the channel `email` needs."""

    @field_validator("channel")
    @classmethod
    def _of_this_installation(cls, value: str, info: ValidationInfo) -> str:
        channels = (info.context or {}).get("channels", ())
        if value not in channels:
            raise ValueError(
                f"“{value}” is not a channel of this installation, which has {', '.join(channels)}"
            )
        return value

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.channel == "email" and self.email is None:
            raise ValueError("the [email] table with the content is missing")
        for name, source in self.email.parts.items() if self.email else ():
            if "\0" in source:
                raise ValueError(f"email.{name}: it holds a NUL character")
        return self

    @property
    def content(self) -> str:
        """The content as JSON, as `EmailContent` reads it; an empty object where there is none."""
        return self.email.model_dump_json(exclude_none=True) if self.email else "{}"


def parse_delivery_file(data: bytes, channels: tuple[str, ...]) -> DeliveryFile:
    """Reads a delivery file.

    Args:
        data: The file's bytes: TOML 1.0 in UTF-8, with or without a byte order mark.
        channels: The channels of this installation.

    Raises:
        DeliveryFileInvalid: It is not TOML, or a key is missing, unknown or wrong; every one is named.
    """
    try:
        return DeliveryFile.model_validate(
            tomllib.loads(data.decode("utf-8-sig")), context={"channels": channels}
        )
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DeliveryFileInvalid(f"line {line} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise DeliveryFileInvalid(f"it is not TOML: {error}") from None
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        told = (_sentence(".".join(str(part) for part in f["loc"]), f["type"], f["msg"]) for f in faults)
        raise DeliveryFileInvalid("; ".join(told)) from None


def _sentence(key: str, kind: str, message: str) -> str:
    if kind == "missing":
        return f"the key “{key}” is missing"
    if kind == "extra_forbidden":
        return f"there is no key “{key}”"
    message = message.removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
