"""The rules of a confirm: each refuses for its own reason, in one order, and the rest may start."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.commands import Confirm, Finding, Reason, Wave
from contracts.states import State
from worker.domain.confirmation import check_confirm, summary
from worker.domain.deliveries import Delivery, Waves
from worker.domain.operators import Operator, Role

if TYPE_CHECKING:
    from worker.domain.refusals import Refused

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ANA = Operator("ana", active=True, roles=frozenset({Role.START_DELIVERIES}))
DELIVERY = Delivery(
    delivery_id=42,
    label="November",
    channel="email",
    state=State.READY,
    preparation=3,
    to_deliver=10,
    contact_date=None,
    time_zone=None,
    valid_for=timedelta(days=3),
    valid_until=None,
    confirmed_at=None,
)


def confirmed(
    delivery: Delivery | None = DELIVERY,
    operator: Operator | None = ANA,
    preparation: int | None = 3,
    *,
    definitive: bool = True,
) -> Refused | None:
    command = Confirm(delivery_id=42, operator="ana", preparation=preparation, definitive=definitive)
    return check_confirm(command, operator, delivery, NOON)


RULES: list[tuple[dict[str, Any], Reason, str]] = [
    (
        {"purged_at": NOON},
        Reason.WRONG_STATE,
        (
            "The recipients and the log of delivery 42 left by retention at 2026-11-23T12:00:00+00:00;"
            " its KPIs are kept."
        ),
    ),
    (
        {"state": State.PREPARING},
        Reason.NOT_READY,
        "The delivery is not ready to be confirmed: it is preparing. Prepare it first.",
    ),
    (
        {"preparation": 4},
        Reason.STALE_PREPARATION,
        (
            "You confirm preparation 3, and the delivery has since been prepared again (preparation 4)."
            " Look at the new summary, then confirm that."
        ),
    ),
    (
        {"to_deliver": 0},
        Reason.NOTHING_TO_SEND,
        "There is nobody to send to: the preparation left no recipient. Prepare it with others.",
    ),
    (
        {"contact_date": NOON - timedelta(days=3)},
        Reason.VALIDITY_OVER,
        (
            "The delivery could be sent until 2026-11-23T12:00:00+00:00."
            " Prepare it again with a later contact date or a longer validity."
        ),
    ),
    (
        {"last_due_at": NOON + timedelta(days=4)},
        Reason.VALIDITY_OVER,
        (
            "The last recipients are due at 2026-11-27T12:00:00+00:00, when the delivery, confirmed now, is"
            " no longer valid. Prepare it again with a longer validity."
        ),
    ),
    (
        {"contact_date": NOON - 2 * HOUR, "late_limit": HOUR},
        Reason.VALIDITY_OVER,
        (
            "The delivery cannot start any more: it was due at 2026-11-23T10:00:00+00:00 and may start 1h"
            " late at most, and it is 2026-11-23T12:00:00+00:00 now."
            " Prepare it again with a later contact date."
        ),
    ),
]


def test_a_delivery_that_is_ready_may_be_confirmed() -> None:
    assert confirmed() is None
    assert confirmed(replace(DELIVERY, to_deliver=1)) is None


@pytest.mark.parametrize(("change", "reason", "sentence"), RULES, ids=[str(r[1]) for r in RULES])
def test_each_rule_refuses_for_its_own_reason_and_says_what_to_do(
    change: dict[str, Any], reason: Reason, sentence: str
) -> None:
    refused = confirmed(replace(DELIVERY, **change))
    assert refused is not None
    assert (refused.reason, refused.message) == (reason, sentence)


@pytest.mark.parametrize("first", range(5))
def test_of_several_broken_rules_the_first_in_order_is_told(first: int) -> None:
    """A person mends first what the rest hangs on: the state, what they saw, the audience, the time."""
    broken: dict[str, Any] = {}
    for change, *_ in reversed(RULES[first:5]):
        broken |= change
    refused = confirmed(replace(DELIVERY, **broken))
    assert refused is not None
    assert refused.reason is RULES[first][1]


def test_the_right_to_start_is_asked_for_before_anything_is_told_of_the_delivery() -> None:
    for delivery in (None, DELIVERY, replace(DELIVERY, to_deliver=0)):
        refused = confirmed(delivery, operator=None)
        assert refused is not None
        assert refused.reason is Reason.OPERATOR_UNKNOWN
    prepares = replace(ANA, roles=frozenset({Role.PREPARE_DELIVERIES, Role.ADMINISTRATION}))
    refused = confirmed(operator=prepares)
    assert refused is not None
    assert refused.reason is Reason.ROLE_MISSING
    assert "can confirm a send: “ana” lacks the role start_deliveries." in refused.message


def test_an_unknown_delivery_is_refused_by_its_number() -> None:
    refused = confirmed(None)
    assert refused is not None
    assert (refused.reason, refused.message) == (Reason.DELIVERY_UNKNOWN, "There is no delivery 42.")


@given(st.integers(1, 5), st.integers(1, 5))
def test_only_the_definitive_ok_must_name_the_last_preparation(seen: int, last: int) -> None:
    delivery = replace(DELIVERY, preparation=last)
    assert (confirmed(delivery, preparation=seen) is None) == (seen == last)
    assert confirmed(delivery, preparation=seen, definitive=False) is None
    assert confirmed(delivery, preparation=None, definitive=False) is None


@given(st.integers(-200, 200))
def test_the_validity_ends_at_its_last_moment(minutes: int) -> None:
    """It is counted from the contact date, or from now without one; one that is set already stands."""
    moment = NOON + timedelta(minutes=minutes)
    still = minutes > 0
    assert (confirmed(replace(DELIVERY, contact_date=moment - DELIVERY.valid_for)) is None) == still
    set_before = replace(DELIVERY, valid_until=moment, contact_date=NOON)
    assert (confirmed(set_before) is None) == still
    due = replace(DELIVERY, last_due_at=NOON + DELIVERY.valid_for - timedelta(minutes=minutes))
    assert (confirmed(due) is None) == still
    late = replace(DELIVERY, contact_date=NOON - HOUR, late_limit=HOUR + timedelta(minutes=minutes))
    assert (confirmed(late) is None) == (minutes >= 0)


@pytest.mark.parametrize("state", State)
def test_a_delivery_that_is_not_ready_is_refused_by_what_became_of_it(state: State) -> None:
    before = {State.EDITING, State.PREPARING, State.PREPARATION_FAILED}
    refused = confirmed(replace(DELIVERY, state=state, confirmed_at=None if state in before else NOON))
    if state is State.READY:
        assert refused is None
        return
    assert refused is not None
    words = state.value.replace("_", " ")
    if state in before:
        assert refused.reason is Reason.NOT_READY
        assert f"it is {words}." in refused.message
    else:
        assert refused.reason is Reason.ALREADY_CONFIRMED
        assert refused.message == (
            f"The delivery was confirmed at 2026-11-23T12:00:00+00:00 already and is {words}."
        )


def test_a_delivery_that_was_stopped_before_any_ok_was_never_confirmed() -> None:
    refused = confirmed(replace(DELIVERY, state=State.STOPPED))
    assert refused is not None
    assert refused.reason is Reason.WRONG_STATE
    assert refused.message == "The delivery was stopped before it was confirmed."


def test_the_summary_shows_what_is_about_to_be_sent() -> None:
    delivery = replace(
        DELIVERY,
        contact_date=NOON + HOUR,
        time_zone="Europe/Paris",
        late_limit=2 * HOUR,
        messages_per_hour=36_000,
    )
    wave = Wave(recipients=10, due_at=NOON + HOUR)
    finding = Finding(check="no_text", message="There is no text part.")
    shown = summary(delivery, {"duplicate": 2}, Waves(1, (wave,)), NOON, told=(finding,))
    assert shown.model_dump() == {
        "label": "November",
        "channel": "email",
        "to_deliver": 10,
        "excluded": {"duplicate": 2},
        "contact_date": NOON + HOUR,
        "time_zone": "Europe/Paris",
        "valid_until": NOON + HOUR + timedelta(days=3),
        "valid_for": timedelta(days=3),
        "preparation": 3,
        "wave_count": 1,
        "waves": (wave.model_dump(),),
        "late_limit": 2 * HOUR,
        "messages_per_hour": 36_000,
        "second_approval": None,
        "findings": ({"check": "no_text", "message": "There is no text part.", "blocks": False},),
    }


def test_without_a_contact_date_the_summary_counts_the_validity_from_now() -> None:
    assert summary(DELIVERY, {}, Waves(0, ()), NOON).valid_until == NOON + timedelta(days=3)
