"""Delivery events: what happened to a delivery, told to whoever listens."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from contracts.base import DeliveryId, Instant, Message, Name, Text
from contracts.states import State


class Event(StrEnum):
    """What happened; the value is the routing key."""

    CONFIRMED = "delivery.confirmed"
    """An operator confirmed it."""
    STARTED = "delivery.started"
    """Sending began."""
    PAUSED = "delivery.paused"
    """It was paused: by an operator, or by itself."""
    RESUMED = "delivery.resumed"
    """An operator resumed it."""
    STOPPED = "delivery.stopped"
    """An operator ended it."""
    FINISHED = "delivery.finished"
    """Every recipient is accounted for."""
    FAILED = "delivery.failed"
    """It could not go on."""


class DeliveryEvent(Message):
    """Published at least once, in order for one delivery."""

    event_id: Name
    """The event's own identifier, and the `message_id`: a doubled one is the same event."""
    delivery_id: DeliveryId
    """The delivery that it happened to."""
    event: Annotated[Event, Field(strict=False)]
    """What happened; the routing key as well."""
    state: Annotated[State, Field(strict=False)]
    """The delivery's state after it."""
    at: Instant
    """When it happened."""
    operator: Name | None = None
    """Who caused it; null where nobody did."""
    reason: Text | None = None
    """Why, for a person; null where none was given."""
