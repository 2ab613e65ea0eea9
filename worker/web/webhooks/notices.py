"""The interface of a provider: it verifies a call and reads what the call says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol, TypeVar

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError, from_json

from contracts.base import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from contracts.tracking import TrackingKind
    from worker.domain.bounces import Classified

_MOST_EVENTS: Final = 10_000
"""Of one call. SendGrid, which sends most, stays below 2,000."""
_MOST_FAULTS: Final = 3
_LONGEST_ID: Final = 150
_AHEAD: Final = timedelta(minutes=10)
"""So far a provider's clock may be ahead of ours."""


def _written(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("moment", "Input should be a moment as text (RFC 3339)")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_written)]
"""A moment with its offset, as text: a number would be read as seconds."""


class NotSigned(Exception):
    """The call is not signed by the provider, or is too old. The message says why, and tells no secret."""

    outcome = "forged"


class TooOld(NotSigned):
    """Its signature is right, and was made too long ago, or in the future."""

    outcome = "stale"


class Unreadable(Exception):
    """The call is signed, and is not what the provider documents; the message says where."""


class NotNow(Exception):
    """It cannot be verified now: what is needed for that is out of reach."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request."""

    headers: Mapping[str, str]
    """Its headers; names in any case."""
    body: bytes
    """Its body."""
    now: datetime
    """When it came."""


@dataclass(frozen=True, slots=True)
class Bounced:
    """A message was refused or returned for good."""

    names: tuple[str, ...]
    """Names that may be ours: references, Message-IDs, envelope senders; unchecked."""
    at: datetime
    """When, as the provider says."""
    verdict: Classified
    """What it means."""
    reply: str
    """The server's words, in one line."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """A recipient did something."""

    names: tuple[str, ...]
    """As in `Bounced`."""
    at: datetime
    """When, as the provider says."""
    kind: TrackingKind
    """What."""
    event_id: str
    """The same for the same event, however often it is reported. Of a complaint it is not used."""
    url: str | None = None
    """The address of the link, for a click."""
    user_agent: str | None = None
    """The recipient's software."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing that is recorded."""

    outcome: str
    """What it is counted as: `delayed` or `other`."""


Notice = Bounced | Tracked | Ignored
"""What one event of a call says."""

DELAYED: Final = Ignored("delayed")
"""The provider goes on trying."""
OTHER: Final = Ignored("other")
"""Delivered, accepted, subscribed again and the like."""


@dataclass(slots=True)
class Parsed:
    """What a call says."""

    notices: list[Notice] = field(default_factory=list)
    """By event, in the order of the call."""
    faults: list[str] = field(default_factory=list)
    """What could not be read, a sentence each."""

    def told(self) -> str:
        """Returns the faults as one sentence."""
        more = len(self.faults) - _MOST_FAULTS
        return " ".join([*self.faults[:_MOST_FAULTS], *([f"And {more} more."] if more > 0 else [])])


class Provider(Protocol):
    """One provider."""

    name: str
    """The end of its path, and its label in metrics."""
    challenge: str
    """What a 401 names as the way to sign (RFC 9110 section 11.6.1)."""

    async def verify(self, call: Call) -> None:
        """Returns if the provider made the call.

        Raises:
            NotSigned, TooOld: It did not, or long ago.
            Unreadable: The signature cannot be found, since the call is of another form.
            NotNow: What is needed to verify it is out of reach.
        """

    def parse(self, call: Call) -> Parsed:
        """Reads a call that was verified.

        Raises:
            Unreadable: The body as a whole is of another form.
        """


class Lenient(BaseModel):
    """A part of a provider's body: the fields that are read; all others are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


Model = TypeVar("Model", bound=BaseModel)


def read_json(body: bytes | str) -> Any:  # noqa: ANN401 - what JSON holds
    """Reads JSON of any depth.

    Raises:
        Unreadable: It is none.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Unreadable(f"The body is not JSON: {error}.") from None


def read_model(model: type[Model], value: object, where: str = "") -> Model:
    """Reads a part of a body by a model.

    Raises:
        Unreadable: It does not fit; the message names the fields.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise Unreadable(f"{where}{explain(error)}") from None


def read_each(items: object, read: Callable[[Any], Iterable[Notice]]) -> Parsed:
    """Reads the events of an array one by one, so that one that does not fit costs no other.

    Raises:
        Unreadable: It is no array, or too long.
    """
    if not isinstance(items, list):
        raise Unreadable("The body is no array of events.")
    if len(items) > _MOST_EVENTS:
        raise Unreadable(f"The body has {len(items)} events; {_MOST_EVENTS} are the most.")
    parsed = Parsed()
    for place, item in enumerate(items, 1):
        try:
            parsed.notices += read(item)
        except Unreadable as error:
            parsed.faults.append(f"Event {place} of {len(items)}: {error}")
    return parsed


def check_age(signed_at: datetime, now: datetime, most: timedelta) -> None:
    """Checks when a call was signed.

    Raises:
        TooOld: Too long ago, or in the future: then one of the two clocks is wrong.
    """
    if signed_at < now - most:
        raise TooOld(
            f"It was signed at {_second(signed_at)}, and it is {_second(now)}: more than"
            f" {most.total_seconds():g} s ago."
        )
    if signed_at > now + _AHEAD:
        raise TooOld(f"It was signed at {_second(signed_at)}, and it is only {_second(now)} here.")


def from_seconds(seconds: float) -> datetime:
    """Reads a Unix time.

    Raises:
        Unreadable: It is out of range.
    """
    try:
        moment = datetime.fromtimestamp(seconds, tz=UTC)
    except (ValueError, OverflowError, OSError):
        raise Unreadable("The timestamp is out of range.") from None
    return moment


def event_id(provider: str, *parts: str) -> str:
    """Returns the identifier of an event: the provider's own, or a hash of it if it is long or odd."""
    own = ":".join(parts)
    if len(own) > _LONGEST_ID or not own.isprintable():
        own = hashlib.sha256(own.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{provider}-{own}"


def _second(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
