"""The file that describes a delivery: its label, channel, schedule, validity and content, in TOML."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Self

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

from worker.domain.schedule import Duration, Schedule, SendingLimits, WaveDefinition, check_waves
from worker.domain.tracked_content import Tracking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from worker.domain.preflight import Found
    from worker.domain.tracked_content import TrackedContent


class DeliveryFileInvalid(Exception):
    """The file does not describe a delivery; the message names the key and what is wrong with it."""


def _printable(value: str) -> str:
    if not value.isprintable() or not value.strip():
        raise ValueError("it must be one line that is not blank")
    return value


@dataclass(frozen=True, slots=True)
class ContentTable:
    """The content table of a channel's delivery files, with the channel's model."""

    name: str
    """The table's name in the file."""
    model: type[BaseModel]
    """Its model."""
    required: bool
    """Whether a delivery over the channel must have it."""
    problems: Callable[..., list[str]]
    """Returns sentences that say why a content, with the columns of the file, can be sent to nobody:
    `worker.domain.template_checks.check`."""
    track: Callable[[Any, Tracking], TrackedContent]
    """Puts tracked links into a content without such problems: `worker.domain.tracked_content.track`."""
    try_out: Callable[[Any, Iterable[tuple[int, Mapping[str, Any]]]], list[str]]
    """Returns sentences that say what fails for some recipients, given by line and values."""
    look: Callable[[Any, Sequence[tuple[int, Mapping[str, Any]]]], list[Found]]
    """Returns what the preflight finds in a stored content, with some recipients, by number and values."""
    complete: Callable[[Any, Callable[[str, int], bytes]], Any]
    """Returns a content with what is made of it once. It takes a function that reads a file, by its path and
    at most so many octets. Raises ContentInvalid."""


class DeliveryFile(BaseModel):
    """A delivery as its file describes it. An unknown key is refused, since it is probably misspelt."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    label: Annotated[str, Field(max_length=200), AfterValidator(_printable)]
    """The delivery's name for people."""
    channel: str
    """One of the channels of this installation."""
    valid_for: Duration = timedelta(days=3)
    """How long sending and retrying may go on, from the contact date or, without one, the confirmation."""
    schedule: Schedule = Schedule()
    """When sending may start."""
    waves: Annotated[tuple[WaveDefinition, ...], Field(strict=False, max_length=100)] = ()
    """Shares of the audience that are due one after the other; empty if all are due at the start."""
    limits: SendingLimits = SendingLimits()
    """The delivery's limits."""
    tracking: Tracking = Tracking()
    """What is tracked."""
    content: BaseModel | None = None
    """The content, in the channel's model; None if the channel needs none."""

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
    def _waves_take_everybody(self) -> Self:
        check_waves(self.waves, self.valid_for)
        if self.waves and self.schedule.local_time:
            raise ValueError("waves: they cannot be joined with schedule.local_time; leave out one of them")
        return self

    @property
    def content_json(self) -> str:
        """The content as JSON; an empty object if there is none."""
        return self.content.model_dump_json(exclude_none=True) if self.content else "{}"


def parse_delivery_file(data: bytes, channels: Mapping[str, ContentTable]) -> DeliveryFile:
    """Reads a delivery file.

    Args:
        data: The file's bytes: TOML 1.0 in UTF-8, with or without a byte order mark.
        channels: The channels of this installation, each with the table of its content.

    Raises:
        DeliveryFileInvalid: It is not TOML, or a key is missing, unknown or wrong; every one is named.
    """
    try:
        keys = tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DeliveryFileInvalid(f"line {line} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise DeliveryFileInvalid(f"it is not TOML: {error}") from None
    faults: list[str] = []
    content = _read_content(keys, channels, faults)
    try:
        file = DeliveryFile.model_validate(keys, context={"channels": channels})
    except ValidationError as error:
        faults = _sentences(error) + faults
    if faults:
        raise DeliveryFileInvalid("; ".join(faults))
    return file.model_copy(update={"content": content})


def _read_content(
    keys: dict[str, Any], channels: Mapping[str, ContentTable], faults: list[str]
) -> BaseModel | None:
    """Removes the content from a file's keys and reads it; adds its faults to `faults`."""
    if "content" in keys:
        faults.append("there is no key “content”")
        del keys["content"]
    channel = keys.get("channel")
    table = channels.get(channel) if isinstance(channel, str) else None
    if table is None:
        for other in channels.values():
            keys.pop(other.name, None)  # the channel is wrong, not its table
        return None
    found = keys.pop(table.name, None)
    if found is None:
        if table.required:
            faults.append(f"the [{table.name}] table with the content is missing")
        return None
    try:
        return table.model.model_validate(found)
    except ValidationError as error:
        faults += _sentences(error, table.name)
        return None


def _sentences(error: ValidationError, *inside: str) -> list[str]:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return [_sentence(".".join(map(str, (*inside, *f["loc"]))), f["type"], f["msg"]) for f in faults]


def _sentence(key: str, kind: str, message: str) -> str:
    if kind == "missing":
        return f"the key “{key}” is missing"
    if kind == "extra_forbidden":
        return f"there is no key “{key}”"
    message = message.removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
