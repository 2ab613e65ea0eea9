"""Who may do what: known, active, and with the role that the action needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.commands import Reason
from worker.domain.operators import Operator, Role, refuse_operator

roles = st.frozensets(st.sampled_from(Role))
operators = st.builds(Operator, st.just("ana"), st.booleans(), roles)


@given(st.none() | operators, st.sampled_from(Role))
def test_an_operator_may_act_if_and_only_if_known_active_and_with_the_role(
    operator: Operator | None, role: Role
) -> None:
    refused = refuse_operator(operator, "ana", role, "act")
    may = operator is not None and operator.active and role in operator.roles
    assert (refused is None) == may
    if refused is not None:
        known = operator is not None and operator.active
        assert refused.reason is (Reason.ROLE_MISSING if known else Reason.OPERATOR_UNKNOWN)


@pytest.mark.parametrize(
    ("operator", "sentence"),
    [
        (None, "The operator “ana” is not known."),
        (Operator("ana", active=False, roles=frozenset(Role)), "The operator “ana” has been deactivated."),
    ],
)
def test_a_refusal_says_whether_the_operator_is_unknown_or_deactivated(
    operator: Operator | None, sentence: str
) -> None:
    refused = refuse_operator(operator, "ana", Role.START_DELIVERIES, "confirm a send")
    assert refused is not None
    assert refused.message == sentence


@pytest.mark.parametrize(
    ("role", "title", "name"),
    [
        (Role.PREPARE_DELIVERIES, "Prepare deliveries", "prepare_deliveries"),
        (Role.START_DELIVERIES, "Start deliveries", "start_deliveries"),
        (Role.ADMINISTRATION, "Administration", "administration"),
    ],
)
def test_a_refusal_names_the_missing_role_as_people_and_as_the_directory_call_it(
    role: Role, title: str, name: str
) -> None:
    others = Operator("ana", active=True, roles=frozenset(Role) - {role})
    refused = refuse_operator(others, "ana", role, "do this")
    assert refused is not None
    assert refused.message == (
        f"Only operators with the {title} role can do this: “ana” lacks the role {name}."
    )
