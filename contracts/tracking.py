"""Tracking events: what a recipient did with a message."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from contracts.base import DeliveryId, Instant, Message, Name, Quoted, RecipientNumber, Text
from contracts.batch import Batch, Decoded
from contracts.routing import CLICK, COMPLAINT, MIRROR, OPEN, OPTOUT

if TYPE_CHECKING:
    from collections.abc import Sequence


class TrackingKind(StrEnum):
    """What the recipient did."""

    OPEN = OPEN
    """Opened the message."""
    CLICK = CLICK
    """Followed one of its links. It counts as an open too."""
    MIRROR = MIRROR
    """Looked at its copy on the web. It counts as an open too."""
    OPTOUT = OPTOUT
    """Unsubscribed. It counts as an open too."""
    COMPLAINT = COMPLAINT
    """Took the message for spam, as the recipient's provider says. It is no open."""


class TrackingEvent(Message):
    """One thing that a recipient did. The body says the kind; the routing key only routes."""

    event_id: Name
    """The event's identifier. Events with the same identifier count once."""
    delivery_id: DeliveryId
    """The delivery that the message belongs to."""
    recipient: RecipientNumber
    """The recipient's number in the delivery."""
    kind: Annotated[TrackingKind, Field(strict=False)]
    """What the recipient did."""
    url: Annotated[Text, Field(max_length=8192)] | None = None
    """The address of the link, for a click."""
    at: Instant
    """When it happened."""
    user_agent: Quoted | None = None
    """The recipient's software as it names itself; of any length."""


_BATCH: Final = Batch(TrackingEvent)


def decode(body: bytes) -> Decoded[TrackingEvent]:
    """Reads a body of tracking events: one, or an array of up to 1,000 of any kinds.

    Returns:
        The events that fit, and what did not, each with the sentence that says why. Nothing is raised.
    """
    return _BATCH.decode(body)


def encode(events: Sequence[TrackingEvent]) -> bytes:
    """Writes tracking events as an array, in compact JSON.

    Raises:
        ValueError: There are more than 1,000.
    """
    return _BATCH.encode(events)
