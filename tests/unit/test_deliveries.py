"""A delivery as the rules know it: until when it may be sent, and how its moments and states are shown."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from contracts.commands import Reason
from contracts.states import State
from worker.domain.deliveries import (
    Delivery,
    left_by_retention,
    shown,
    unknown_delivery,
    validity_end,
    words,
)

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DELIVERY = Delivery(
    delivery_id=42,
    label="November",
    channel="email",
    state=State.READY,
    preparation=1,
    to_deliver=10,
    contact_date=None,
    time_zone=None,
    valid_for=3 * HOUR,
    valid_until=None,
    confirmed_at=None,
)


def test_the_validity_is_counted_from_the_contact_date_or_else_from_now_until_it_is_set() -> None:
    assert validity_end(DELIVERY, NOON) == NOON + 3 * HOUR
    planned = replace(DELIVERY, contact_date=NOON + HOUR)
    assert validity_end(planned, NOON) == NOON + 4 * HOUR
    assert validity_end(replace(planned, valid_until=NOON + 2 * HOUR), NOON) == NOON + 2 * HOUR


def test_a_delivery_may_start_up_to_its_limit_late_and_says_why_not_after_that() -> None:
    due = replace(DELIVERY, contact_date=NOON, late_limit=HOUR)
    second = timedelta(seconds=1)
    assert due.too_late(NOON + HOUR) is None
    assert due.too_late(NOON + HOUR + second) == (
        "it was due at 2026-11-23T12:00:00+00:00 and may start 1h late at most, and it is"
        " 2026-11-23T13:00:01+00:00 now"
    )
    days = timedelta(days=9)
    assert replace(due, late_limit=None).too_late(NOON + days) is None
    assert replace(due, contact_date=None).too_late(NOON + days) is None


def test_people_read_moments_to_the_second_and_states_as_words() -> None:
    assert shown(NOON + timedelta(microseconds=7)) == "2026-11-23T12:00:00+00:00"
    assert words(State.PREPARATION_FAILED) == "preparation failed"


def test_a_delivery_that_is_unknown_or_has_left_is_told_by_its_number() -> None:
    assert unknown_delivery(7).reason is Reason.DELIVERY_UNKNOWN
    assert unknown_delivery(7).message == "There is no delivery 7."
    assert left_by_retention(7, NOON) == (
        "The recipients and the log of delivery 7 left by retention at 2026-11-23T12:00:00+00:00;"
        " its KPIs are kept."
    )
