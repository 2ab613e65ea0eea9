"""Commands from upstream, and the reply to them."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from contracts.base import ChannelName, Count, DeliveryId, Instant, Message, Name, PreparationNumber, Text
from contracts.states import State


class Status(StrEnum):
    """How a command was answered."""

    ACCEPTED = "accepted"
    """It was carried out."""
    FINALIZE = "finalize"
    """Nothing changed. A person must see the summary before the definitive confirmation."""
    REFUSED = "refused"
    """It was understood, and the rules forbid it."""
    INVALID = "invalid"
    """It could not be understood."""


class Reason(StrEnum):
    """Why a command was refused or invalid."""

    OPERATOR_UNKNOWN = "operator_unknown"
    """No active operator has this name."""
    ROLE_MISSING = "role_missing"
    """The operator does not hold the role that the command needs."""
    DELIVERY_UNKNOWN = "delivery_unknown"
    """No delivery has this number."""
    NOT_READY = "not_ready"
    """The delivery is not prepared, or its preparation failed."""
    STALE_PREPARATION = "stale_preparation"
    """The delivery was prepared again since the operator saw it."""
    ALREADY_CONFIRMED = "already_confirmed"
    """The delivery was confirmed before."""
    VALIDITY_OVER = "validity_over"
    """The time in which it may be sent is over."""
    NOTHING_TO_SEND = "nothing_to_send"
    """The preparation left no recipient."""
    WRONG_STATE = "wrong_state"
    """The delivery's state does not allow the command."""
    AWAITING_APPROVAL = "awaiting_approval"
    """The delivery is not started: it needs the OK of two operators, and this is the first, which is
    recorded, or the same operator's again."""
    PREFLIGHT = "preflight"
    """The preflight found something that this installation does not send."""
    PUBLISHER_NOT_ALLOWED = "publisher_not_allowed"
    """Its broker user may not publish commands, or its token is missing, invalid or another operator's."""
    MALFORMED = "malformed"
    """The body is not JSON or does not fit this command, or a required property is missing."""


class Confirm(Message):
    """Confirms a prepared delivery, or asks for the summary that a person sees before that."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"definitive": {"const": True}}},
            "then": {"required": ["preparation"], "properties": {"preparation": {"type": "integer"}}},
        }
    )

    delivery_id: DeliveryId
    """The delivery to confirm."""
    operator: Name
    """Who confirms: must be known, active, and hold `start_deliveries`."""
    preparation: PreparationNumber | None = None
    """The preparation that the operator saw; required when `definitive` is true."""
    definitive: bool
    """False asks for the summary and changes nothing; true starts the delivery."""

    @model_validator(mode="after")
    def _definitive_names_its_preparation(self) -> Self:
        if self.definitive and self.preparation is None:
            raise PydanticCustomError(
                "missing_preparation", "preparation: Field required when definitive is true"
            )
        return self


class Control(Message):
    """Pauses, resumes or stops a delivery; the routing key says which."""

    delivery_id: DeliveryId
    """The delivery to act on."""
    operator: Name
    """Who asks: must be known, active, and hold `start_deliveries`."""
    reason: Annotated[Text, Field(min_length=1, max_length=2000)]
    """Why, in the operator's words. It is stored with the change of state."""


class ComputeStats(Message):
    """Asks for a delivery's KPIs, recounted."""

    delivery_id: DeliveryId
    """The delivery to count."""


class Wave(Message):
    """Recipients that are due together."""

    recipients: Count
    """The number of recipients."""
    due_at: Instant | None = None
    """When they are due; null if `due_after` says it."""
    due_after: timedelta | None = None
    """How long after the start they are due (ISO 8601 duration); null if `due_at` says it."""


class SecondApproval(Message):
    """That a delivery needs the OK of two operators, and who gave the first."""

    above: Count
    """A delivery to more recipients than this needs two."""
    first_by: Name | None = None
    """The operator who gave the first; null if the next OK will be the first."""
    first_at: Instant | None = None
    """When it was given; null without a first."""
    first_until: Instant | None = None
    """When it lapses, unless another operator gives the second before; null without a first."""


class Finding(Message):
    """What a careful person would look at before the confirmation."""

    check: Text
    """The kind of finding, such as `no_opt_out`. More kinds may come."""
    message: Text
    """A sentence for a person."""
    blocks: bool = False
    """Whether this installation refuses the definitive confirmation because of it."""


class Summary(Message):
    """What a person must see before the definitive confirmation."""

    label: Text
    """The delivery's label."""
    channel: ChannelName
    """Its channel."""
    to_deliver: Count
    """The number of its recipients."""
    excluded: dict[Text, Count]
    """How many targets the preparation left out, by cause."""
    contact_date: Instant | None = None
    """When sending may start; null if it starts at the confirmation."""
    time_zone: Text | None = None
    """The IANA time zone that the contact date was given in."""
    valid_until: Instant | None = None
    """Until when sending and retrying may go on; null if it is counted from the start, or unlimited."""
    valid_for: timedelta | None = None
    """How long sending and retrying may go on after the start (ISO 8601 duration); null for unlimited."""
    preparation: PreparationNumber
    """The preparation that this summary describes. The definitive confirmation must name it."""
    wave_count: Count = 0
    """The number of its waves; 0 if all recipients are due at the start."""
    waves: tuple[Wave, ...] = Field(default=(), strict=False)
    """The first waves, at most 20, in the order in which they are due."""
    late_limit: timedelta | None = None
    """How late it may start before it is skipped (ISO 8601 duration); null for no limit."""
    messages_per_hour: Annotated[int, Field(ge=1)] | None = None
    """The limit of its throughput; null for none."""
    second_approval: SecondApproval | None = None
    """That two operators must confirm it, and who has; null if one OK starts it."""
    findings: tuple[Finding, ...] = Field(default=(), strict=False)
    """What the preflight found, those that block first."""


class Reply(Message):
    """The answer to a command: published to its `reply_to`, and always recorded."""

    command_id: Text
    """The `message_id` of the command."""
    delivery_id: DeliveryId | None = None
    """The delivery that the command named; null if it could not be read."""
    status: Annotated[Status, Field(strict=False)]
    """How the command was answered."""
    reason: Annotated[Reason, Field(strict=False)] | None = None
    """Why it was refused or invalid; null otherwise."""
    message: Text
    """A sentence for a person."""
    state: Annotated[State, Field(strict=False)] | None = None
    """The delivery's state after the command; null if there is no such delivery, or its state was not
    read."""
    summary: Summary | None = None
    """What a person must see; with `finalize` only."""
