"""What all messages share: the base model, bounded types, and one sentence for a body that does not fit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

_MAX_ERRORS_TOLD: Final = 5

DeliveryId = Annotated[int, Field(ge=1, le=2**63 - 1)]
"""A delivery's number: a Postgres bigint."""

RecipientNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A recipient's number in its delivery, dense from 1: a Postgres int."""

AttemptNumber = Annotated[int, Field(ge=1, le=2**15 - 1)]
"""The n-th try for one recipient, from 1: a Postgres smallint."""

PreparationNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""The number of a delivery's snapshot, raised by every preparation: a Postgres int."""

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A number of recipients or of messages."""

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""Text that a Postgres `text` column can hold: without NUL."""

Name = Annotated[Text, Field(min_length=1, max_length=200)]
"""A short name: an operator, a label's key, an identifier."""

ChannelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
"""A channel's name: part of a queue's name, so plain ASCII."""


def _without_nul(text: str) -> str:
    return text.replace("\x00", "\ufffd")


Quoted = Annotated[str, AfterValidator(_without_nul)]
"""Text of foreign software, of any length. A NUL becomes U+FFFD, so that no outcome is lost because of
one."""

Instant = Annotated[
    AwareDatetime,
    # The bounds are far from the ends of Python's calendar, where a change of zone overflows.
    Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(9000, 1, 1, tzinfo=UTC)),
]
"""A moment with its offset from UTC (RFC 3339), from 1970 on and before the year 9000."""


class Message(BaseModel):
    """A message's body: immutable, strict in its types. It ignores unknown fields."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )


def explain(error: ValidationError) -> str:
    """Says in one sentence what is wrong with a body.

    Args:
        error: What pydantic raised for the body.

    Returns:
        Each fault as `field: what is wrong with it`, joined by semicolons; after five, the number of the
        others. The wrong values are left out: they may be personal, and of any size.
    """
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    told = []
    for fault in faults[:_MAX_ERRORS_TOLD]:
        where = ".".join(str(part) for part in fault["loc"])
        told.append(f"{where}: {fault['msg']}" if where else fault["msg"])
    if len(faults) > _MAX_ERRORS_TOLD:
        told.append(f"and {len(faults) - _MAX_ERRORS_TOLD} more")
    return "; ".join(told) + "."
