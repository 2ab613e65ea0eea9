"""The file that describes a delivery: its label, channel, schedule, validity and content, in TOML."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from worker.domain.content import EmailContent
from worker.domain.schedule import Duration, Limits, Schedule, Wave, check_waves


class DeliveryFileInvalid(Exception):  # noqa: N818 - the name is the sentence
    """The file does not describe a delivery; the message names the key and what is wrong with it."""


def _printable(value: str) -> str:
    if not value.isprintable() or not value.strip():
        raise ValueError("it must be one line that is not blank")
    return value


class DeliveryFile(BaseModel):
    """A delivery as its file describes it. An unknown key is refused, as it is a misspelt one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    label: Annotated[str, Field(max_length=200), AfterValidator(_printable)]
    """What people call the delivery."""
    channel: str
    """One of the channels of this installation."""
    valid_for: Duration = timedelta(days=3)
    """For how long after the contact date, or else the confirmation, sending and retrying may go on."""
    schedule: Schedule = Schedule()
    """When sending may start."""
    waves: Annotated[tuple[Wave, ...], Field(strict=False, max_length=100)] = ()
    """Shares of the audience that are due one after the other; none for all at the start."""
    limits: Limits = Limits()
    """How fast and how often it may try, and when it must pause itself."""
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
    def _deals_everybody(self) -> Self:
        check_waves(self.waves, self.valid_for)
        if self.waves and self.schedule.local_time:
            raise ValueError("waves: they cannot be joined with schedule.local_time; leave out one of them")
        return self

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
