"""Delivery events: what happened to a delivery. Any program may bind a queue to read them."""

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
    """It was paused by an operator, or paused itself. `operator` names the operator."""
    RESUMED = "delivery.resumed"
    """An operator resumed it, or had unknown outcomes of a finished delivery sent again."""
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
    COMPLAINT_RATIO = "complaint_ratio"
    """Too many of those who got the message took it for spam."""
    START_PENDING = "start_pending"
    """It should have started."""
    LOW_THROUGHPUT = "low_throughput"
    """Its sending is too slow."""
    LONG_IN_PROGRESS = "long_in_progress"
    """It has been in progress for too long."""


class Alert(Message):
    """What crossed which threshold."""

    criterion: Annotated[Criterion, Field(strict=False)]
    """What it is about."""
    since: Instant
    """Since when: the end, the start, the due time, or the time of the first sample."""
    value: float | None
    """The figure; null if the criterion has none."""
    threshold: float | None
    """The threshold; null if the criterion has none."""
    unit: Text
    """The unit of both: `percent`, `minutes`, `recipients per minute`; empty if there is none."""


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
    refused: Count = 0
    """Of the attempted, those who were refused for a fault of the sender."""
    refused_pct: float = 0
    """These in percent of the attempted, to two decimals."""
    refused_limit_pct: float = 0
    """The limit for such refusals in percent; 0 for none."""


class DeliveryEvent(Message):
    """Published at least once, in order for one delivery."""

    event_id: Name
    """The event's identifier, and the `message_id`: the same identifier is the same event."""
    delivery_id: DeliveryId
    """The delivery that it happened to."""
    number: Annotated[int, Field(ge=1, le=2**63 - 1)]
    """A number that rises with each event of a delivery. An event whose number is not above the last one is a
    repeat."""
    event: Annotated[Event, Field(strict=False)]
    """What happened. It is the routing key too."""
    state: Annotated[State, Field(strict=False)]
    """The delivery's state after the event."""
    at: Instant
    """When it happened."""
    operator: Name | None = None
    """The operator who caused it; null if no operator did."""
    reason: Text | None = None
    """The reason, for a person; null if none was given."""
    figures: Figures | None = None
    """With a pause by the circuit breaker: what tripped it; null otherwise."""
    alert: Alert | None = None
    """With `delivery.alert`: what it is about; null otherwise. `reason` says it in a sentence."""
