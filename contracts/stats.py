"""Statistics of a delivery: the answer to *compute stats*, by the names of the view `deployment`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contracts.base import ChannelName, Count, DeliveryId, Instant, Message, PreparationNumber, Text
from contracts.commands import Status
from contracts.states import State

Percentage = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Rounded to two decimals. It may pass 100, since recipients may open and bounce later."""


class Stats(Message):
    """A delivery's KPIs in one snapshot.

    They balance: `to_deliver` is the sum of `sent`, `bounced`, `errors`, `unknown`, `excluded_late`,
    `cancelled`, `retrying`, `sending` and `pending`.
    """

    status: Literal[Status.ACCEPTED] = Status.ACCEPTED
    """Always `accepted`. A refusal is a reply with the status `refused`."""
    delivery_id: DeliveryId
    """The delivery that was counted."""
    label: Text
    """Its label."""
    channel: ChannelName
    """Its channel."""
    state: Annotated[State, Field(strict=False)]
    """Its state."""
    preparation: PreparationNumber | None
    """The preparation that was confirmed, or the newest one; null if there is none."""
    contact_date: Instant | None
    """When sending may start; null if it starts at the confirmation."""
    confirmed_at: Instant | None
    """When it was confirmed."""
    started_at: Instant | None
    """When sending began."""
    finished_at: Instant | None
    """When the last recipient was accounted for."""
    to_deliver: Count
    """Recipients of the confirmed preparation."""
    sent: Count
    """Recipients whose current outcome is sent."""
    bounced: Count
    """Recipients whose current outcome is a bounce."""
    bounced_hard: Count
    """Of these, hard bounces."""
    bounced_soft: Count
    """Of these, soft bounces."""
    bounced_ignored: Count
    """Of these, ignored bounces."""
    errors: Count
    """Recipients whose current outcome is an error."""
    unknown: Count
    """Recipients for which nobody knows whether the channel took the message."""
    excluded_late: Count
    """Recipients left out at send time, for example because they were quarantined after the preparation."""
    cancelled: Count
    """Recipients not sent because the delivery was stopped or its validity ended."""
    retrying: Count
    """Recipients that wait for another attempt."""
    sending: Count
    """Recipients whose attempt is under way."""
    pending: Count
    """Recipients not tried yet."""
    opened: Count
    """Unique recipients with any tracking event but a complaint."""
    clicked: Count
    """Unique recipients with a click."""
    optout: Count
    """Unique recipients that unsubscribed."""
    mirror: Count
    """Unique recipients that looked at the copy on the web."""
    sent_pct: Percentage | None
    """`sent` of `to_deliver`. A percentage of nothing is null, here and below."""
    bounce_error_pct: Percentage | None
    """`bounced + errors` of `sent + bounced + errors`."""
    open_pct: Percentage | None
    """`opened` of `sent`."""
    click_pct: Percentage | None
    """`clicked` of `sent`."""
    human_opened: Count
    """Unique recipients with a tracking event of a person. Machines do not count."""
    human_clicked: Count
    """Unique recipients with a click of a person."""
    human_open_pct: Percentage | None
    """`human_opened` of `sent`."""
    human_click_pct: Percentage | None
    """`human_clicked` of `sent`."""
    complained: Count
    """Unique recipients that took the message for spam, as their provider says."""
    complaint_pct: Percentage | None
    """`complained` of `sent`."""
    excluded: Count
    """Targets that the preparation left out; outside the balance."""
    excluded_by_cause: dict[Text, Count]
    """`excluded` by cause."""
    updated_at: Instant | None
    """When a counter last moved."""
    as_of: Instant
    """The moment of the snapshot; never before the request was published."""
    exact: bool
    """True if the KPIs were recounted from the logs. False if they are the live counters, because a recount
    would take too long or retention has removed the logs."""
    drift: dict[Text, int]
    """For each KPI that differed, the recounted value minus the live counter. This recount repaired it."""
