"""The send message: one attempt for one recipient."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from contracts.base import AttemptNumber, ChannelName, DeliveryId, Instant, Message, RecipientNumber, Text


class Send(Message):
    """Asks a channel's sender to try one recipient. The sender reads the content once per preparation."""

    delivery_id: DeliveryId
    """The delivery that is sent."""
    recipient: RecipientNumber
    """The recipient's number in the delivery."""
    attempt: AttemptNumber
    """Which try this is."""
    channel: ChannelName
    """The channel to send over. It is the routing key too."""
    address: Annotated[Text, Field(min_length=1, max_length=1000)]
    """The recipient's address in this channel."""
    variables: dict[str, Any]
    """The recipient's values for the content: any JSON by name."""
    valid_until: Instant | None = None
    """The time from which it is too late to send; null for no limit."""


def message_id(delivery_id: int, recipient: int, attempt: int) -> str:
    """Names a send message. Two messages that ask for the same attempt have the same name.

    Returns:
        `<delivery>-<recipient>-<attempt>`.
    """
    return f"{delivery_id}-{recipient}-{attempt}"
