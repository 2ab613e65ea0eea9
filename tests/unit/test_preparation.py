"""Who may prepare, and from which state."""

from __future__ import annotations

import pytest

from contracts.states import State
from worker.domain.operators import Operator, Role
from worker.domain.preparation import refuse_operator, refuse_state


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (None, "is not known"),
        (Operator("ana", active=False, roles=frozenset(Role)), "has been deactivated"),
        (Operator("ana", active=True, roles=frozenset()), "needs the role prepare_deliveries or"),
        (Operator("ana", active=True, roles=frozenset({Role.ADMINISTRATION})), "needs the role"),
        (Operator("ana", active=True, roles=frozenset({Role.PREPARE_DELIVERIES})), None),
        (Operator("ana", active=True, roles=frozenset({Role.START_DELIVERIES})), None),
    ],
)
def test_an_active_operator_with_the_role_to_prepare_or_to_start_may_prepare(
    operator: Operator | None, reason: str | None
) -> None:
    refusal = refuse_operator(operator, "ana")
    assert (refusal is None) if reason is None else (refusal is not None and reason in refusal)


@pytest.mark.parametrize("state", State)
def test_a_delivery_is_prepared_until_it_is_confirmed_and_never_after(state: State) -> None:
    refusal = refuse_state(7, state)
    if state in {State.EDITING, State.READY, State.PREPARATION_FAILED, State.PREPARING}:
        assert refusal is None
    else:
        assert refusal is not None
        assert state.value.replace("_", " ") in refusal
