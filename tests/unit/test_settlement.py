"""Unknown outcomes: what an operator may settle them as, and until when they may be sent again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.commands import Reason
from contracts.states import State
from worker.domain.deliveries import Delivery
from worker.domain.operators import Operator, Role
from worker.domain.settlement import REASON, Settlement, check_settlement

if TYPE_CHECKING:
    from worker.domain.refusals import Refused

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ANA = Operator("ana", active=True, roles=frozenset({Role.START_DELIVERIES}))
DELIVERY = Delivery(
    delivery_id=42,
    label="November",
    channel="email",
    state=State.FINISHED,
    preparation=1,
    to_deliver=10,
    contact_date=None,
    time_zone=None,
    valid_for=timedelta(days=3),
    valid_until=NOON + timedelta(minutes=1),
    confirmed_at=NOON - timedelta(days=2),
)
ways = st.sampled_from(Settlement)


def refusal(
    how: Settlement, delivery: Delivery | None = DELIVERY, operator: Operator | None = ANA
) -> Refused | None:
    return check_settlement(how, operator, "ana", delivery, 42, NOON)


@pytest.mark.parametrize("how", Settlement)
def test_only_who_may_start_deliveries_settles_anything(how: Settlement) -> None:
    assert refusal(how) is None
    others = replace(ANA, roles=frozenset(Role) - {Role.START_DELIVERIES})
    refused = refusal(how, None, others)
    assert refused is not None
    assert refused.reason is Reason.ROLE_MISSING
    assert "can settle unknown outcomes" in refused.message


@pytest.mark.parametrize("how", Settlement)
def test_nothing_is_settled_of_a_delivery_that_is_unknown_or_has_left(how: Settlement) -> None:
    unknown, left = refusal(how, None), refusal(how, replace(DELIVERY, purged_at=NOON))
    assert unknown is not None
    assert (unknown.reason, unknown.message) == (Reason.DELIVERY_UNKNOWN, "There is no delivery 42.")
    assert left is not None
    assert left.reason is Reason.WRONG_STATE
    assert left.message.startswith("The recipients and the log of delivery 42 left by retention at 2026-")


@given(ways, st.sampled_from(State), st.none() | st.integers(-2, 2))
def test_an_outcome_may_be_told_at_any_time_and_sent_again_only_while_the_delivery_can_go_on(
    how: Settlement, state: State, minutes: int | None
) -> None:
    until = None if minutes is None else NOON + timedelta(minutes=minutes)
    refused = refusal(how, replace(DELIVERY, state=state, valid_until=until))
    goes_on = state in {
        State.START_PENDING, State.IN_PROGRESS, State.RETRY_PENDING, State.PAUSED, State.FINISHED
    }  # fmt: skip
    valid = minutes is None or minutes > 0
    assert (refused is None) == (how is not Settlement.RESEND or (goes_on and valid))
    if refused is not None:
        assert refused.reason is (Reason.VALIDITY_OVER if goes_on else Reason.WRONG_STATE)


def test_a_resend_that_comes_too_late_says_what_is_left_to_do() -> None:
    over = refusal(Settlement.RESEND, replace(DELIVERY, valid_until=NOON))
    assert over is not None
    assert over.message == (
        "Nothing can be sent again: the delivery could be sent until 2026-11-23T12:00:00+00:00."
        " Settle the outcomes as sent or error."
    )
    stopped = refusal(Settlement.RESEND, replace(DELIVERY, state=State.STOPPED))
    assert stopped is not None
    assert stopped.message == "Nothing can be sent again: the delivery is stopped."


def test_the_words_of_the_command_line_and_of_the_log_stay() -> None:
    assert [how.value for how in Settlement] == ["resend", "sent", "error"]
    assert REASON == "settled_by_operator"
