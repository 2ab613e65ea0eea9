"""Claims over the wire: a sender in another language asks before it sends."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from contracts.base import AttemptNumber, DeliveryId, Message, RecipientNumber, Text
from contracts.batch import MAX_ITEMS
from contracts.commands import Status


class ClaimReason(StrEnum):
    """Why a request for claims was refused or invalid."""

    DELIVERY_UNKNOWN = "delivery_unknown"
    """No confirmed delivery of this number goes over this channel."""
    BUSY = "busy"
    """The database was too busy. The same request can be made again."""
    MALFORMED = "malformed"
    """The body is not JSON or does not fit, the channel is unknown, or the `message_id` is no UUID."""


class AskedAttempt(Message):
    """One attempt that a sender wants to make."""

    recipient: RecipientNumber
    """The recipient's number in the delivery."""
    attempt: AttemptNumber
    """Which try this is, as the send message says it."""
    address: Annotated[Text, Field(min_length=1, max_length=1000)]
    """The address of the send message. If it is quarantined by now, the recipient is excluded."""


class GrantedAttempt(Message):
    """One attempt that the sender may make."""

    recipient: RecipientNumber
    """The recipient's number in the delivery."""
    attempt: AttemptNumber
    """Which try this is."""


class ClaimRequest(Message):
    """Asks for the right to try recipients of one delivery. The routing key is its channel."""

    delivery_id: DeliveryId
    """The delivery that is sent."""
    recipients: Annotated[list[AskedAttempt], Field(min_length=1, max_length=MAX_ITEMS)]
    """The attempts, each recipient once."""

    @model_validator(mode="after")
    def _each_recipient_once(self) -> Self:
        # A sender that has a message twice would find both granted.
        if len({asked.recipient for asked in self.recipients}) < len(self.recipients):
            raise PydanticCustomError(
                "doubled_recipient", "recipients: each recipient may be there only once"
            )
        return self


class ClaimAnswer(Message):
    """The answer to a request for claims, published to its `reply_to`."""

    delivery_id: DeliveryId | None = None
    """The delivery that the request named; null if it could not be read."""
    status: Annotated[Status, Field(strict=False)]
    """`accepted`, `refused` or `invalid`. `accepted` says nothing about how many attempts are granted."""
    reason: Annotated[ClaimReason, Field(strict=False)] | None = None
    """Why it was refused or invalid; null otherwise."""
    message: Text
    """A sentence for a person."""
    token: Text | None = None
    """The number under which the claims are held, as text; the same request again has the same. Null if
    nothing was decided."""
    granted: list[GrantedAttempt] = Field(default_factory=list)
    """What may be sent, by recipient. Nothing else of the request may be sent."""
    lease_seconds: Annotated[float, Field(gt=0)] | None = None
    """How long the results may take from now on; then the granted recipients without a result are unknown.
    Null if nothing is granted."""
