"""Delivery events: what happened to a delivery, told to whoever listens."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from contracts.base import Count, DeliveryId, Instant, Message, Name, Text
from contracts.states import State


class Event(StrEnum):
    """What happened; the value is the routing key."""

    CONFIRMED = "delivery.confirmed"
    """An operator confirmed it."""
    STARTED = "delivery.started"
    """Sending began."""
    PAUSED = "delivery.paused"
    """It was paused: by an operator (who is named), or by itself."""
    RESUMED = "delivery.resumed"
    """An operator resumed it, or has unknown outcomes of a finished one sent again."""
    STOPPED = "delivery.stopped"
    """An operator ended it."""
    FINISHED = "delivery.finished"
    """Every recipient is accounted for."""
    FAILED = "delivery.failed"
    """It could not go on."""
    ALERT = "delivery.alert"
    """Somebody should look at it: `alert` says why. Once per criterion in 24 hours."""


class Criterion(StrEnum):
    """What an alert is about."""

    FAILED = "failed"
    """The delivery failed."""
    PREPARATION_FAILED = "preparation_failed"
    """Its preparation failed."""
    HARD_BOUNCE_RATIO = "hard_bounce_ratio"
    """Too many of the attempted recipients are hard bounces."""
    SOFT_BOUNCE_RATIO = "soft_bounce_ratio"
    """Too many of the attempted recipients are soft bounces."""
    START_PENDING = "start_pending"
    """It should have started."""
    LOW_THROUGHPUT = "low_throughput"
    """It gets on too slowly."""
    LONG_IN_PROGRESS = "long_in_progress"
    """It has been in progress for too long."""


class Alert(Message):
    """What crossed which threshold."""

    criterion: Annotated[Criterion, Field(strict=False)]
    """What it is about."""
    since: Instant
    """From when it is counted: the end, the start, the time that was due, or that of the first sample."""
    value: float | None
    """The figure; null where the criterion has none."""
    threshold: float | None
    """What it crossed; null where the criterion has none."""
    unit: Text
    """Of both: `percent`, `minutes`, `recipients per minute`; empty where there is none."""


class Figures(Message):
    """The outcomes that tripped the circuit breaker, and its limits."""

    attempted: Count
    """Recipients that are sent, bounced or errors."""
    bounced_hard: Count
    """Of these, hard bounces."""
    errors: Count
    """Of these, errors."""
    hard_bounce_pct: float
    """Hard bounces in percent of the attempted, to two decimals."""
    error_pct: float
    """Errors in percent of the attempted, to two decimals."""
    hard_bounce_limit_pct: float
    """The limit for hard bounces in percent; 0 for none."""
    error_limit_pct: float
    """The limit for errors in percent; 0 for none."""


class DeliveryEvent(Message):
    """Published at least once, in order for one delivery."""

    event_id: Name
    """The event's own identifier, and the `message_id`: a doubled one is the same event."""
    delivery_id: DeliveryId
    """The delivery that it happened to."""
    number: Annotated[int, Field(ge=1, le=2**63 - 1)]
    """Rises from each event of a delivery to the next: one that is not above the last seen is a repeat."""
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
    figures: Figures | None = None
    """With a pause by the circuit breaker: what tripped it; null otherwise."""
    alert: Alert | None = None
    """With `delivery.alert`: what it is about; null otherwise. `reason` says it in a sentence."""
