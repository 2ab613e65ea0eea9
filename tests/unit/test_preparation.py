"""Who may prepare, and from which state."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from contracts.states import State
from worker.domain.operators import Operator, Role
from worker.domain.preparation import refuse_operator, refuse_state

UNKNOWN = "The operator “ana” is not known. Add them with: sendoff operator add."
ROLE_MISSING = (
    "To prepare a delivery, “ana” needs the role prepare_deliveries or start_deliveries."
    " Give it with: sendoff operator grant."
)


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (None, UNKNOWN),
        (Operator("ana", active=False, roles=frozenset(Role)), "The operator “ana” has been deactivated."),
        (Operator("ana", active=True, roles=frozenset()), ROLE_MISSING),
        (Operator("ana", active=True, roles=frozenset({Role.ADMINISTRATION})), ROLE_MISSING),
        (Operator("ana", active=True, roles=frozenset({Role.PREPARE_DELIVERIES})), None),
        (Operator("ana", active=True, roles=frozenset({Role.START_DELIVERIES})), None),
    ],
)
def test_an_active_operator_with_the_role_to_prepare_or_to_start_may_prepare(
    operator: Operator | None, reason: str | None
) -> None:
    assert refuse_operator(operator, "ana") == reason


@pytest.mark.parametrize("state", State)
def test_a_delivery_is_prepared_until_it_is_confirmed_and_never_after(state: State) -> None:
    refusal = refuse_state(7, state)
    if state in {State.EDITING, State.READY, State.PREPARATION_FAILED, State.PREPARING}:
        assert refusal is None
    else:
        assert refusal == (
            f"The delivery 7 is {state.value.replace('_', ' ')} and cannot be prepared again;"
            " leave out --delivery to prepare it as a new one."
        )


@pytest.mark.parametrize("state", State)
def test_a_delivery_that_left_by_retention_is_prepared_as_a_new_one_only(state: State) -> None:
    left = refuse_state(7, state, datetime(2026, 11, 23, 12, tzinfo=UTC))
    assert left == (
        "The recipients and the log of delivery 7 left by retention at 2026-11-23T12:00:00+00:00; its KPIs"
        " are kept. Leave out --delivery to prepare it as a new one."
    )
